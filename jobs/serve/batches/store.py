"""The objects below `--batches`: files, batches, and what their runs need.

Every object is written whole or not at all. Nothing is held in memory alone, so that any replica,
and a server that was started again, answers the same.
"""

import hashlib
import json
import os
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from jobs.serve.protocol.errors import ApiError
from pipeline.storage.errors import InputError, OutputError, StorageUnavailable
from pipeline.storage.explained_errors import describe_error, explain_errors
from pipeline.storage.files import (
    create_whole,
    join,
    list_files,
    object_info,
    open_location,
    open_object,
    read_object,
    remove_tree,
    uri,
    write_whole,
)
from pipeline.storage.retries import retry
from pipeline.storage.urls import mask

NAME = "--batches"  # of the location, in errors
READ_AT_ONCE = 16  # documents of a list; latency is the limit
Order = Literal["asc", "desc"]
T = TypeVar("T")


class Store:
    """The objects below a local folder or the URL of a bucket. Names are relative to it.

    Methods raise StorageUnavailable if the store fails.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def check(self) -> None:
        """Raise InputError unless an object can be created here, only where there is none."""
        name = f".probe-{uuid.uuid4().hex}"
        fs, path = self._open(name)
        with explain_errors(NAME, self.url):
            is_atomic = create_whole(fs, path, b"1") and not create_whole(fs, path, b"2")
            retry(fs.rm_file, path)
        if not is_atomic:
            raise InputError(
                f"{NAME} {mask(self.url)} lies on a store that cannot create an object only where "
                "there is none: use another store"
            )

    def url_of(self, name: str) -> str:
        """The full URL of an object or a folder, `file:///...` for a local one."""
        return uri(*self._open(name))

    def create(self, name: str, document: dict[str, Any]) -> bool:
        """Create a document. Returns False, and changes nothing, if it exists."""
        with self._answers():
            return create_whole(*self._open(name), json.dumps(document).encode())

    def write(self, name: str, content: bytes | Path) -> None:
        """Create or replace an object with this content, or with that of a local file."""
        with self._answers():
            write_whole(*self._open(name), content)

    def read(self, name: str) -> dict[str, Any] | None:
        """Read a document; None if there is none."""
        try:
            with self._answers():
                found: dict[str, Any] = json.loads(read_object(*self._open(name)))
        except FileNotFoundError:
            return None
        return found

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        try:
            with self._answers():
                object_info(*self._open(name))
        except FileNotFoundError:
            return False
        return True

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading. Raises FileNotFoundError."""
        with self._answers():
            return open_object(*self._open(name))

    def names(self, folder: str) -> list[str]:
        """The names of what lies directly in a folder, sorted; none if it does not exist."""
        fs, path = self._open(folder)
        try:
            with self._answers():
                fs.invalidate_cache()
                found = retry(fs.ls, path, detail=False)
        except FileNotFoundError:
            return []
        names = (name.rstrip("/").rpartition("/")[2] for name in found)
        return sorted(name for name in names if not name.startswith("."))

    def sizes(self, folder: str) -> dict[str, int]:
        """The bytes of all objects below a folder, by their names relative to it."""
        fs, path = self._open(folder)
        if isinstance(fs, LocalFileSystem):
            return _sizes_on_disk(path)
        with self._answers():
            fs.invalidate_cache()
            found = list_files(fs, path)
        start = len(path.rstrip("/")) + 1
        return {name[start:]: int(info["size"]) for name, info in found.items()}

    def remove(self, name: str) -> None:
        """Delete an object, if it exists."""
        fs, path = self._open(name)
        with suppress(FileNotFoundError), self._answers():
            retry(fs.rm_file, path)

    def remove_folder(self, name: str) -> None:
        """Delete all objects of a folder."""
        fs, path = self._open(name)
        with self._answers():
            fs.invalidate_cache()  # else what has come since it was listed would stay
            remove_tree(fs, path)

    def _open(self, name: str) -> tuple[AbstractFileSystem, str]:
        return open_location(join(self.url, name), NAME)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Errors of the store become StorageUnavailable; FileNotFoundError stays."""
        try:
            yield
        except (FileNotFoundError, InputError, OutputError, StorageUnavailable):
            raise
        except Exception as error:  # stores raise many types
            raise StorageUnavailable(f"{NAME} {describe_error(error, self.url)}") from error


def _sizes_on_disk(folder: str) -> dict[str, int]:
    """The bytes of all files below a local folder, whatever comes and goes meanwhile."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with suppress(FileNotFoundError):
                found[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return found


def folder_of_scope(scope: str) -> str:
    """The name of the folder of a scope, which may have any characters."""
    return hashlib.sha256(scope.encode()).hexdigest()[:32]


def new_id(prefix: str) -> str:
    """A random id that sorts by the time at which it was made: `file-019f...`."""
    return f"{prefix}{int(time.time() * 1000):012x}{secrets.token_hex(12)}"


def time_of_id(text: str, prefix: str) -> float:
    """The Unix time in seconds at which an id was made."""
    return int(text.removeprefix(prefix)[:12], 16) / 1000


def is_id(text: str, prefix: str) -> bool:
    """Whether a text of a client has the form of an id. Others may lead out of their folder."""
    return re.fullmatch(rf"{prefix}[0-9a-f]{{36}}", text) is not None


def page_of(
    names: Sequence[str],
    read: Callable[[str], T | None],
    limit: int,
    after: str | None,
    order: Order,
) -> tuple[list[T], bool]:
    """A page of what `read` finds for sorted names, and whether there is more behind it.

    The page begins behind the name `after`, which need not exist any more. `read` returns None for
    what does not belong to the list.
    """
    is_descending = order == "desc"
    ordered = sorted(names, reverse=is_descending)
    if after is not None:
        ordered = [name for name in ordered if (name < after if is_descending else name > after)]
    found: list[T] = []
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for first in range(0, len(ordered), READ_AT_ONCE):
            some = pool.map(read, ordered[first : first + READ_AT_ONCE])
            found += [one for one in some if one is not None]
            if len(found) > limit:
                break
    return found[:limit], len(found) > limit


def check_cursor(after: str | None, prefix: str) -> None:
    """Raise ApiError for an `after` that is no id."""
    if after is not None and not is_id(after, prefix):
        raise ApiError(
            400, "The parameter `after` is no id of this list.", "invalid_value", "after"
        )
