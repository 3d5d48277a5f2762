"""Images and categories of an annotation file in COCO's format, read as a stream.

ijson reads a value at a time: such files reach gigabytes, nearly all of it outlines of objects, of
which nothing is kept here.
"""

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import ijson

from pipeline.storage.files import InputError, open_location, uri
from pipeline.storage.urls import identity

MOST_LABELS = 100_000
LARGEST_SIDE = 2**31 - 1


def labels_of(annotations: Path) -> tuple[str, ...]:
    """Names of the categories by id, "" in the holes. InputError where one cannot be used."""
    names: dict[int, str] = {}
    for number, category in enumerate(_items(annotations, "categories"), 1):
        place = f"--annotations: category {number}"
        key, name = category.get("id"), category.get("name")
        if not _is_count(key) or key >= MOST_LABELS:
            raise InputError(f"{place} has the id {key!r}: give whole numbers below {MOST_LABELS}")
        if not isinstance(name, str) or not name:
            raise InputError(f"{place} has no name")
        if key in names:
            raise InputError(f"{place} has the id {key}, as one before it")
        names[key] = name
    if not names:
        raise InputError("--annotations: the file has no categories")
    return tuple(names.get(key, "") for key in range(max(names) + 1))


def images_of(annotations: Path, base: str | None) -> Iterator[dict[str, Any]]:
    """number (from 0), id (as text), image_id, width and height of each image.

    `image_id` is its file_name; with `base` the URL of that below it, as `label` names files.
    """
    root = None if base is None else uri(*open_location(base, "--images")).rstrip("/")
    for number, image in enumerate(_items(annotations, "images")):
        place = f"--annotations: image {number + 1}"
        key, name = image.get("id"), image.get("file_name")
        if not isinstance(key, str) and not _is_count(key):
            raise InputError(f"{place} has the id {key!r}: give a number or a text")
        if not isinstance(name, str) or not name:
            raise InputError(f"{place} has no file_name")
        width, height = image.get("width"), image.get("height")
        if not all(_is_count(side) and 0 < side <= LARGEST_SIDE for side in (width, height)):
            raise InputError(f"{place} ({name}) is {width} x {height}: give width and height")
        yield {
            "number": number,
            "id": str(key),
            "image_id": name if root is None else _below(root, name, place),
            "width": width,
            "height": height,
        }


def _items(annotations: Path, name: str) -> Iterator[dict[str, Any]]:
    """The objects of one list of the document."""
    try:
        with annotations.open("rb") as file:
            for item in ijson.items(file, f"{name}.item", use_float=True):
                if not isinstance(item, dict):
                    raise InputError(f"--annotations: {name} holds {item!r}, which is no object")
                yield item
    except ijson.JSONError as error:
        raise InputError(f"--annotations is no JSON document: {error}") from error


def _below(root: str, name: str, place: str) -> str:
    path = posixpath.normpath(name)
    if path.startswith(("/", "../")) or path in (".", "..") or "://" in name:
        raise InputError(f"{place} ({name}) lies outside of --images")
    return identity(f"{root}/{path}")


def _is_count(value: object) -> TypeGuard[int]:
    """Whether a JSON value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
