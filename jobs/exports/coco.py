"""COCO: one JSON document of images, annotations with scores, and categories.

Without the images it names them as they are called below INPUT, where readers look for them. With
them it is a folder in the layout that CVAT and datumaro read too.
"""

import csv
from collections.abc import Iterator
from typing import TextIO

from jobs.accounting.plurals import counted
from jobs.coco.records import Category
from jobs.coco.writer import NewAnnotation, NewImage, write_annotations
from jobs.exports.earlier_export import TABLE, Layout
from jobs.exports.names import OWN, NameRules
from jobs.exports.place import Folder
from jobs.exports.reader import MAPPING, Box, LabelledImage, Labels, mapping_row

# These decimals hold all of float32: pixels below 10,000, and scores, whose ties count in AP.
PIXEL_DECIMALS, SCORE_DECIMALS = 4, 8
DOCUMENT = "annotations/instances_default.json"
LAYOUT = Layout("annotations", (DOCUMENT, TABLE), "images")
RULES = NameRules()


def write(labels: Labels, file: TextIO) -> None:
    """Write all labels; category ids are the tables' label ids."""
    archived = 0

    def images() -> Iterator[LabelledImage]:
        nonlocal archived
        for image in labels.images(OWN):
            archived += image.is_archived
            yield image

    _write_document(labels, images(), file)
    if archived:
        labels.remarks.append(
            f"{counted(archived, 'image')} of archives and Parquet files: no file has their "
            "file_name; --with-images makes a folder with all images"
        )


def write_folder(labels: Labels, folder: Folder) -> None:
    """Write DOCUMENT, whose names are those of the images in the folder."""
    table = csv.writer(folder.table)
    table.writerow(MAPPING)

    def images() -> Iterator[LabelledImage]:
        for image in labels.images(RULES):
            table.writerow((DOCUMENT, *mapping_row(image)))
            yield image

    with folder.open_text(DOCUMENT) as file:
        _write_document(labels, images(), file)


def _write_document(labels: Labels, images: Iterator[LabelledImage], file: TextIO) -> None:
    categories = [Category(label_id, name) for label_id, name in labels.chosen.items()]
    write_annotations(file, categories, map(_new_image, images))


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
