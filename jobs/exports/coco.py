"""COCO: one JSON document of images, annotations with scores, and categories."""

from typing import TextIO

from jobs.coco.records import Category
from jobs.coco.writer import NewAnnotation, NewImage, write_annotations
from jobs.exports.reader import Box, LabelledImage, Labels

# These decimals hold all of float32: pixels below 10,000, and scores, whose ties count in AP.
PIXEL_DECIMALS, SCORE_DECIMALS = 4, 8


def write(labels: Labels, file: TextIO) -> None:
    """Write all labels; category ids are the tables' label ids."""
    categories = [Category(label_id, name) for label_id, name in labels.chosen.items()]
    write_annotations(file, categories, (_new_image(image) for image in labels.images()))


def _new_image(image: LabelledImage) -> NewImage:
    # these fields lead back to the rows of the tables
    way_back = {"image_id": image.image_id, "shard": image.shard}
    boxes = [_new_annotation(box) for box in image.boxes]
    return NewImage(image.name, image.width, image.height, boxes, way_back)


def _new_annotation(box: Box) -> NewAnnotation:
    width, height = box.x_max - box.x_min, box.y_max - box.y_min
    x, y, w, h = (round(side, PIXEL_DECIMALS) for side in (box.x_min, box.y_min, width, height))
    area, score = round(width * height, PIXEL_DECIMALS), round(box.score, SCORE_DECIMALS)
    return NewAnnotation(box.label_id, (x, y, w, h), area, score)
