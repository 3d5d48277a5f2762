"""The images of an annotation file, with their names in the tables."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import PureWindowsPath
from typing import Any

from jobs.coco.records import Image
from pipeline.storage.files import InputError, open_location, uri
from pipeline.storage.urls import identity

NEEDED = ("file_name", "width", "height")  # fields that each image must have


def image_rows(images: Iterable[Image], base: str | None) -> Iterator[dict[str, Any]]:
    """Yield number (from 0), id, file_name, stem, image_id, width and height of each image.

    `stem` is the last part of the file_name, without its extension.

    `image_id` is the image's file_name; an address loses its secrets. With `base` it is the URL of
    the file below `base`, as `label` names files.
    """
    root = None if base is None else uri(*open_location(base, "--images")).rstrip("/")
    for number, image in enumerate(images):
        assert image.file_name is not None  # NEEDED guarantees it
        if root is None:
            image_id = identity(image.file_name)
        else:
            image_id = _below(root, image.file_name, f"image {number + 1}")
        size = {"width": image.width, "height": image.height}
        names = {"file_name": image.file_name, "stem": _stem(image.file_name)}
        yield {"number": number, "id": image.id, **names, "image_id": image_id, **size}


def _stem(name: str) -> str:
    return PureWindowsPath(name).stem  # which splits at both kinds of slashes


def _below(root: str, name: str, entry: str) -> str:
    path = posixpath.normpath(name.replace("\\", "/"))  # Windows writes backslashes
    has_drive = re.match(r"[A-Za-z]:/", path)
    if path.startswith(("/", "../")) or path in (".", "..") or "://" in name or has_drive:
        raise InputError(f"--annotations: {entry} ({name}) lies outside of --images")
    return identity(f"{root}/{path}")
