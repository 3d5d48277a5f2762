"""Reads exports with the tools' own code; it runs in the tools' environment, as a program.

Its arguments are the name of a function below, the folder or file of an export, and the folder of
the images where that is elsewhere. It prints JSON: by the path of each image that the tool found, a
list of its boxes as class name, left, top, width and height, in fractions of the image.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Box = tuple[str, float, float, float, float]
Found = Iterator[tuple[str, list[Box]]]


def ultralytics(made: str) -> Found:
    data = importlib.import_module("ultralytics.data.utils").check_det_dataset(
        f"{made}/data.yaml", autodownload=False
    )
    dataset = importlib.import_module("ultralytics.data.dataset").YOLODataset
    for split in ("train", "val"):
        read = dataset(img_path=data[split], data=data, imgsz=64, augment=False)
    for label in read.labels:
        rows = zip(label["cls"].ravel().tolist(), label["bboxes"].tolist(), strict=True)
        yield (
            label["im_file"],
            [(data["names"][int(k)], x - w / 2, y - h / 2, w, h) for k, (x, y, w, h) in rows],
        )


def datumaro(made: str) -> Found:
    return _datumaro(made, "voc")


def datumaro_coco(made: str) -> Found:
    return _datumaro(made, "coco_instances")


def _datumaro(made: str, form: str) -> Found:
    module = importlib.import_module("datumaro")
    environment = importlib.import_module("datumaro.components.environment").Environment()
    assert form in environment.detect_dataset(made)
    kind = module.AnnotationType
    read = module.Dataset.import_from(made, form)
    names = [label.name for label in read.categories()[kind.label]]
    for item in read:
        height, width = item.media.size
        yield (
            item.media.path,
            [
                (names[box.label], box.x / width, box.y / height, box.w / width, box.h / height)
                for box in item.annotations
                if box.type == kind.bbox
            ],
        )


def fiftyone_yolo(made: str) -> Found:
    importer = importlib.import_module("fiftyone.utils.yolo").YOLOv5DatasetImporter
    return _fiftyone(importer(dataset_dir=made, yaml_path="data.yaml", split="val"))


def fiftyone_voc(made: str) -> Found:
    importer = importlib.import_module("fiftyone.utils.voc").VOCDetectionDatasetImporter
    return _fiftyone(importer(data_path=f"{made}/JPEGImages", labels_path=f"{made}/Annotations"))


def fiftyone_coco(made: str, images: str) -> Found:
    importer = importlib.import_module("fiftyone.utils.coco").COCODetectionDatasetImporter
    return _fiftyone(importer(data_path=images, labels_path=made))


def _fiftyone(importer: Any) -> Found:
    with importer:
        for path, _, labels in importer:
            labels = labels["detections"] if isinstance(labels, dict) else labels
            boxes = labels.detections if labels else []
            yield path, [(box.label, *box.bounding_box) for box in boxes]


if __name__ == "__main__":
    found = globals()[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({str(Path(path)): boxes for path, boxes in found}))
