"""COCO: one JSON document of images, annotations with scores, and categories."""

from typing import TextIO

from jobs.coco.records import Category
from jobs.coco.writer import NewAnnotation, NewImage, write_annotations
from jobs.exports.reader import Box, LabelledImage, Labels

# Decimals that hold what float32 does: pixels below 10,000, and scores, whose ties count in AP.
PIXEL_DECIMALS, SCORE_DECIMALS = 4, 8


def write(labels: Labels, file: TextIO) -> None:
    """Category ids are the tables' label ids."""
    categories = [Category(label_id, name) for label_id, name in labels.classes.items()]
    write_annotations(file, categories, (_image(image) for image in labels.images()))


def _image(image: LabelledImage) -> NewImage:
    way_back = {"image_id": image.image_id, "shard": image.shard}  # to the tables
    boxes = [_annotation(box) for box in image.boxes]
    return NewImage(image.name, image.width, image.height, boxes, way_back)


def _annotation(box: Box) -> NewAnnotation:
    width, height = box.x_max - box.x_min, box.y_max - box.y_min
    x, y, w, h = (round(side, PIXEL_DECIMALS) for side in (box.x_min, box.y_min, width, height))
    area, score = round(width * height, PIXEL_DECIMALS), round(box.score, SCORE_DECIMALS)
    return NewAnnotation(box.label_id, (x, y, w, h), area, score)
