"""The images of an annotation file, with their names in the tables."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import PureWindowsPath
from typing import Any

from jobs.coco.records import Image
from pipeline.storage.files import InputError, open_location, uri
from pipeline.storage.protocols import is_local
from pipeline.storage.urls import identity, mask

NEEDED = ("file_name", "width", "height")  # fields that each image must have


def image_rows(images: Iterable[Image], base: str | None) -> Iterator[dict[str, Any]]:
    """Yield number (from 0), id, file_name, stem, image_id, width and height of each image.

    `stem` is the last part of the file_name, without its extension.

    `image_id` is the image's file_name; an address loses its secrets. With `base` it is the URL of
    the file below `base`, as `label` names files. Absolute names have to lie there.
    """
    root = None if base is None else _without_end(uri(*open_location(base, "--images")))
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
    """The URL of the file `name` below `root`, whose own address the name may also be.

    InputError if the file lies elsewhere.
    """
    path = name.replace("\\", "/")  # Windows writes backslashes
    for start in (f"{root}/", _path_of(root)):
        if start and path.startswith(start):
            path = path[len(start) :]
            break
    has_protocol = "://" in path
    path = posixpath.normpath(path)
    has_drive = re.match(r"[A-Za-z]:/", path)
    if path.startswith(("/", "../")) or path in (".", "..") or has_protocol or has_drive:
        raise InputError(f"--annotations: {entry} ({mask(name)}) lies outside of --images")
    return identity(f"{root}/{path}")


def _without_end(url: str) -> str:
    """A URL without the slashes at the end of its path; `file:///` is `file://`."""
    protocol, separator, path = url.partition("://")
    return f"{protocol}{separator}{path.rstrip('/')}"


def _path_of(root: str) -> str:
    """What absolute paths of files below a local folder start with; "" for other folders."""
    return f"{root.removeprefix('file://')}/" if is_local(root) else ""
