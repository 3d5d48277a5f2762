"""COCO's AP of any detector of `label --model`, in this process."""

from pathlib import Path

import numpy as np

from jobs.coco.reader import read_annotations
from jobs.evaluate.average_precision import Found, average_precision
from jobs.train.image_files import find_image_files
from pipeline.local import load
from pipeline.storage.errors import InputError


def coco_metrics(
    model: str, weights: str | None, images: Path, annotations: Path, device: str, precision: str
) -> dict[str, float]:
    """METRICS of COCO on the images of an annotation file that lie in a folder, in [0, 1].

    Classes are matched by their names. InputError if no image or no class is found.
    """
    truth = read_annotations(str(annotations), needed=("file_name",))
    files = find_image_files(images, truth.images.values()).found
    if not files:
        raise InputError(f"{images} holds no image of {annotations}")
    detector = load(model, weights, device, precision, threshold=0.0)
    numbers = {name: number for number, name in truth.classes.items()}
    if numbers.keys().isdisjoint(detector.labels):
        raise InputError(f"{annotations} has no class of {model}")
    rows: list[tuple[str, int, float, list[float]]] = []
    for image_id, file in files.items():
        found = detector(file.path)
        rows += [
            (image_id, numbers[label], score, box)
            for label, score, box in zip(found.labels, found.scores, found.boxes, strict=True)
            if label in numbers
        ]
    ids, classes, scores, boxes = zip(*rows, strict=True) if rows else ((), (), (), ())
    detections = Found(
        np.array(ids, object),
        np.array(classes, np.int64),
        np.array(scores, np.float64),
        np.array(boxes, np.float64).reshape(-1, 4),
    )
    return average_precision(truth, detections, set(files)).metrics
