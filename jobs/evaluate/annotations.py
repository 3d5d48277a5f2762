"""Annotations in COCO's format: read, checked, and free of what detection does not need."""

import json
from dataclasses import dataclass
from typing import Any

from pipeline.storage.files import InputError, explained, open_location, read_object

ImageId = int | str


@dataclass(frozen=True)
class Annotations:
    """What a COCO annotation file says. Ids are the file's own."""

    images: dict[ImageId, str | None]  # their file_name
    classes: dict[int, str]  # names by category id
    objects: list[dict[str, Any]]  # image_id, category_id, bbox [x, y, w, h], area, iscrowd
    left_out: int = 0  # objects of images or categories that the file does not list


def read_annotations(location: str) -> Annotations:
    """The annotation file at a path or URL; InputError where it is none."""
    fs, path = open_location(location, "annotations")
    with explained("annotations", location):
        data = read_object(fs, path)
    try:
        document = json.loads(data, object_hook=_without_outline)
    except ValueError as error:
        raise InputError(f"{location} is no JSON: {error}") from error
    try:
        return annotations_of(document)
    except InputError as error:
        raise InputError(f"{location} is no COCO annotation file: {error}") from error


def annotations_of(document: Any) -> Annotations:
    """A COCO document, checked. InputError names the field that is missing or wrong.

    An object without `area` has that of its box.
    """
    images = {
        _field(image, "images", "id", int | str): _file_name(image)
        for image in _entries(document, "images")
    }
    classes = {
        _field(entry, "categories", "id", int): _field(entry, "categories", "name", str)
        for entry in _entries(document, "categories")
    }
    if len({type(name) for name in images}) > 1:
        raise InputError("ids of images are numbers and strings")
    entries = _entries(document, "annotations")
    objects = [_object(entry) for entry in entries]
    kept = [o for o in objects if o["image_id"] in images and o["category_id"] in classes]
    return Annotations(images, classes, kept, len(objects) - len(kept))


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of a file, and most of the memory that it takes."""
    entry.pop("segmentation", None)
    return entry


def _entries(document: Any, name: str) -> list[Any]:
    entries = document.get(name) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"it has no list `{name}`")
    return entries


def _field(entry: Any, table: str, name: str, kind: Any) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"an entry of `{table}` has no valid `{name}`: {str(entry)[:100]}")
    return value


def _file_name(image: dict[str, Any]) -> str | None:
    name = image.get("file_name")
    return None if name is None else str(name)


def _object(entry: Any) -> dict[str, Any]:
    box = _field(entry, "annotations", "bbox", list)
    if len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise InputError(f"a bbox of `annotations` is not [x, y, width, height]: {box}")
    area = entry.get("area")
    return {
        "image_id": _field(entry, "annotations", "image_id", int | str),
        "category_id": _field(entry, "annotations", "category_id", int),
        "bbox": box,
        "area": box[2] * box[3] if area is None else area,
        "iscrowd": int(entry.get("iscrowd", 0)),
    }
