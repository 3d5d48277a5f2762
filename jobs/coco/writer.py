"""The writer of COCO's format: one JSON document of images, annotations and categories."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from jobs.coco.records import Box, Category


@dataclass(frozen=True, slots=True)
class NewAnnotation:
    """A box to be written; with a score where it was detected."""

    category_id: int
    bbox: Box
    area: float
    score: float | None = None


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image to be written with its boxes."""

    file_name: str
    width: int
    height: int
    annotations: Sequence[NewAnnotation]
    more: Mapping[str, str] = field(default_factory=dict)  # fields that COCO does not have


def write_annotations(
    file: TextIO, categories: Iterable[Category], images: Iterable[NewImage]
) -> None:
    """Write an annotation file in one pass over `images`.

    Annotations wait in a temporary file until all images are written. Ids of images and annotations
    count from 1, as pycocotools takes 0 for "no match".
    """
    listed = [{"id": category.id, "name": category.name} for category in categories]
    file.write('{"info": {"description": "detr-batch"}, "licenses": [],\n"categories": ')
    file.write(f'{json.dumps(listed)},\n"images": [')
    with tempfile.TemporaryFile("w+", encoding="utf-8") as waiting:
        count = 0
        for number, image in enumerate(images, 1):
            file.write(("," if number > 1 else "") + "\n" + json.dumps(_image_entry(number, image)))
            for annotation in image.annotations:
                count += 1
                entry = json.dumps(_annotation_entry(count, number, annotation))
                waiting.write(("," if count > 1 else "") + "\n" + entry)
        file.write('\n],\n"annotations": [')
        waiting.seek(0)
        shutil.copyfileobj(waiting, file)
    file.write("\n]}\n")


def _image_entry(number: int, image: NewImage) -> dict[str, Any]:
    size = {"width": image.width, "height": image.height}
    return {"id": number, "file_name": image.file_name, **size, **image.more}


def _annotation_entry(number: int, image: int, annotation: NewAnnotation) -> dict[str, Any]:
    score = {} if annotation.score is None else {"score": annotation.score}
    return {
        "id": number,
        "image_id": image,
        "category_id": annotation.category_id,
        "bbox": list(annotation.bbox),
        "area": annotation.area,
        "iscrowd": 0,
        **score,
    }
