"""COCO: one JSON document of images, annotations with scores, and categories."""

import json
import shutil
import tempfile
from typing import Any, TextIO

from jobs.exports.reader import Box, LabelledImage, Labels

# Decimals that hold what float32 does: pixels below 10,000, and scores, whose ties count in AP.
PIXEL_DECIMALS, SCORE_DECIMALS = 4, 8


def write(labels: Labels, file: TextIO) -> None:
    """One pass: annotations wait in a temporary file until all images are written.

    Category ids are the tables' label ids; ids of images and annotations count from 1, as
    pycocotools takes 0 for "no match".
    """
    categories = [{"id": k, "name": name} for k, name in labels.classes.items()]
    file.write('{"info": {"description": "detr-batch"}, "licenses": [],\n"categories": ')
    file.write(f'{json.dumps(categories)},\n"images": [')
    with tempfile.TemporaryFile("w+", encoding="utf-8") as annotations:
        count = 0
        for image in labels.images():
            file.write(("," if image.number > 1 else "") + "\n" + json.dumps(_image(image)))
            for box in image.boxes:
                count += 1
                line = json.dumps(_annotation(count, image.number, box))
                annotations.write(("," if count > 1 else "") + "\n" + line)
        file.write('\n],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
    file.write("\n]}\n")


def _image(image: LabelledImage) -> dict[str, Any]:
    return {
        "id": image.number,
        "file_name": image.name,
        "width": image.width,
        "height": image.height,
        "image_id": image.image_id,  # beyond COCO: the way back to the tables
        "shard": image.shard,
    }


def _annotation(number: int, image: int, box: Box) -> dict[str, Any]:
    width, height = box.x_max - box.x_min, box.y_max - box.y_min
    corner_and_size = (box.x_min, box.y_min, width, height)
    return {
        "id": number,
        "image_id": image,
        "category_id": box.label_id,
        "bbox": [round(value, PIXEL_DECIMALS) for value in corner_and_size],
        "area": round(width * height, PIXEL_DECIMALS),
        "iscrowd": 0,
        "score": round(box.score, SCORE_DECIMALS),
    }
