"""The image files of a dataset: which there are, and how large they are."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jobs.coco import records as coco
from jobs.coco.file_names import portable_name
from pipeline.formats.parquet import PARQUET_SUFFIXES
from pipeline.formats.tars import TAR_SUFFIXES
from pipeline.stages.opening import displayed_size
from pipeline.storage.errors import InputError

READERS = 16  # threads that read headers: network disks answer slowly
IN_ARCHIVE = "train reads image files alone, and none within tar or Parquet files"


@dataclass(frozen=True)
class ImageFile:
    """An image file with its upright size: columns, rows."""

    path: Path
    size: tuple[int, int]


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded, and why."""

    image_id: str
    path: Path
    reason: str


@dataclass
class ImageFiles:
    """What lies in the folder of a dataset."""

    found: dict[str, ImageFile] = field(default_factory=dict)  # by image id
    missing: list[str] = field(default_factory=list)  # file names
    unreadable: list[Unreadable] = field(default_factory=list)  # by their headers
    shortened: list[str] = field(default_factory=list)  # file names that were found by their ends
    outside: list[str] = field(default_factory=list)  # file names that lead out of the folder


def find_image_files(folder: Path, images: Iterable[coco.Image]) -> ImageFiles:
    """Find the file of each image in `folder`, and read its header.

    InputError if there is none, or if two images would be one file.
    """
    listed = list(images)
    files = ImageFiles()
    owners: dict[Path, _Looked] = {}
    with ThreadPoolExecutor(READERS) as readers:
        for looked in readers.map(partial(_look_at, folder), listed):
            _take(looked, files, owners)
            if looked.image.id in files.found and _leads_out(folder, looked):
                files.outside.append(looked.name)
    if not files.found:
        raise InputError(_describe_nothing(folder, files, len(listed)))
    return files


@dataclass(frozen=True)
class _Looked:
    image: coco.Image
    name: str
    is_shortened: bool
    answer: ImageFile | Unreadable | None  # None: there is no such file


def _leads_out(folder: Path, looked: _Looked) -> bool:
    """Whether a file that was found lies outside of the folder, as absolute names may."""
    if looked.answer is None:
        return False
    path = looked.answer.path
    ways = (os.path.abspath, os.path.realpath)
    return not any(Path(way(path)).is_relative_to(way(folder)) for way in ways)


def _take(looked: _Looked, files: ImageFiles, owners: dict[Path, _Looked]) -> None:
    if looked.answer is None:
        files.missing.append(looked.name)
        return
    path = looked.answer.path
    owner = owners.setdefault(path, looked)
    if owner is not looked and (owner.is_shortened or looked.is_shortened):
        raise InputError(
            f"{path} may be {owner.name} and {looked.name} of the annotations: give --images the "
            "folder in which these names lie"
        )
    if looked.is_shortened:
        files.shortened.append(looked.name)
    if isinstance(looked.answer, Unreadable):
        files.unreadable.append(looked.answer)
    else:
        files.found[looked.image.id] = looked.answer


def _look_at(folder: Path, image: coco.Image) -> _Looked:
    name = image.file_name or ""
    for called, is_shortened in _possible_names(name).items():
        path = folder / called
        if os.path.isfile(path):  # False for what can be no name
            return _Looked(image, name, is_shortened, _read_header(image.id, path))
    if _is_archive(name.partition("#")[0]):
        return _Looked(image, name, False, Unreadable(image.id, Path(name), IN_ARCHIVE))
    return _Looked(image, name, False, None)


def _possible_names(name: str) -> dict[str, bool]:
    """What a file may be called below its folder, best first, and whether that is an end of `name`.

    Names of other machines have folders, or are URLs (`file:///photos/2024/a.jpg`): they are found
    where they are, or by the longest end that lies in the folder (`2024/a.jpg`, then `a.jpg`).
    """
    portable = portable_name(name)
    names = dict.fromkeys((name, portable), False)
    protocol, path = _parts_of_url(portable)
    if protocol == "file":
        names[path] = False
    parts = path.split("/")
    for first in range(1, len(parts)):
        names.setdefault("/".join(parts[first:]), True)
    return names


def _parts_of_url(name: str) -> tuple[str, str]:
    """The protocol of a URL, "" for other names; and its path, decoded."""
    try:
        parts = urlsplit(name) if "://" in name else None
    except ValueError:  # no URL
        parts = None
    return ("", name) if parts is None else (parts.scheme, unquote(parts.path))


def _read_header(image_id: str, path: Path) -> ImageFile | Unreadable:
    try:
        size = displayed_size(path)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types of errors
        reason = IN_ARCHIVE if _is_archive(path.name) else reason_of(error)
        return Unreadable(image_id, path, reason)
    return ImageFile(path, size)


def _is_archive(name: str) -> bool:
    return name.lower().endswith((*TAR_SUFFIXES, *PARQUET_SUFFIXES))


def _describe_nothing(folder: Path, files: ImageFiles, count: int) -> str:
    if files.unreadable:
        first = files.unreadable[0]
        return f"none of {count} images can be read: {first.path}: {first.reason}"
    return (
        f"none of {count} images of the annotations lies in {folder}; the first is called "
        f"{files.missing[0]}: give as --images the folder below which that name, or its end, lies"
    )


def reason_of(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
