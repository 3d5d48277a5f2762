"""Where an export goes: one file, or a folder of many; local, or in a store."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.files import InputError, explain_errors, join, open_location, remove_tree
from pipeline.storage.retries import retry
from pipeline.storage.urls import mask

FILES_AT_ONCE = 256  # put into a store side by side: latency limits them


def check_free(url: str, entries: Sequence[str], overwrite: bool) -> None:
    """InputError where something lies at `url` and may not be overwritten, or nothing can be put.

    `entries` are what a folder will hold; none: `url` will be a file.
    """
    fs, path = open_location(url, "FILE")
    if not isinstance(fs, LocalFileSystem) and "http" in fs.protocol:
        raise InputError(
            f"FILE {mask(url)}: web addresses cannot be written to; give s3:// or a path"
        )
    with explain_errors("FILE", url):
        fs.invalidate_cache()
        is_folder = fs.isdir(path)
        taken = fs.exists(path) and not (is_folder and entries and not fs.ls(path))
    if taken and bool(entries) != is_folder:
        there, wanted = ("folder", "file") if is_folder else ("file", "folder")
        raise InputError(f"FILE {mask(url)} is a {there}, and this format is a {wanted}")
    if taken and not overwrite:
        raise InputError(f"FILE {mask(url)} exists: give another, or pass --overwrite")


@contextmanager
def one_file(url: str) -> Iterator[TextIO]:
    """A file to write, which appears at `url` whole when the block ends, or not at all."""
    fs, path = open_location(url, "FILE")
    if isinstance(fs, LocalFileSystem):
        temporary = _hidden(path)
        with explain_errors("FILE", url):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            made = temporary.open("x", encoding="utf-8", newline="")
        try:
            with made as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="") as file:
        yield cast(TextIO, file)
        file.flush()
        with explain_errors("FILE", url):
            retry(fs.put_file, file.name, path)


class Folder:
    """Many small files, and one table that maps them to images."""

    def __init__(self, url: str, table: TextIO):
        self.table = table
        self._url = url
        self._fs, self._path = open_location(url, "FILE")
        self._waiting: dict[str, bytes] = {}

    def add(self, name: str, content: str) -> None:
        """Put a file at `name`, a safe relative path."""
        self._waiting[f"{self._path}/{name}"] = content.encode()
        if len(self._waiting) == FILES_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if isinstance(self._fs, LocalFileSystem):
            for name, content in self._waiting.items():
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(content)
        elif self._waiting:
            with explain_errors("FILE", self._url):
                retry(self._fs.pipe, self._waiting)
        self._waiting = {}


@contextmanager
def folder(url: str, entries: Sequence[str], table: str) -> Iterator[Folder]:
    """A folder to fill. Of what lies there `entries` are replaced, and nothing else is touched.

    `table`, one of them, is put last. A local folder that was not there appears whole when the
    block ends, or not at all; a store has no such thing.
    """
    fs, path = open_location(url, "FILE")
    if isinstance(fs, LocalFileSystem):
        with (
            _local_folder(Path(path), entries) as place,
            open(place / table, "x", encoding="utf-8", newline="") as file,
        ):
            filled = Folder(str(place), file)
            yield filled
            filled.flush()
        return
    with explain_errors("FILE", url):
        for entry in entries:
            remove_tree(fs, f"{path}/{entry}")
    with one_file(join(url, table)) as file:
        filled = Folder(url, file)
        yield filled
        filled.flush()


@contextmanager
def _local_folder(path: Path, entries: Sequence[str]) -> Iterator[Path]:
    """A hidden folder beside `path` that takes its place when the block ends, or its entries do."""
    made = _hidden(str(path))
    with explain_errors("FILE", str(path)):
        made.mkdir(parents=True)
    try:
        yield made
        if not path.exists() or not any(path.iterdir()):
            os.replace(made, path)
            return
        (made / "old").mkdir()
        for entry in entries:
            if os.path.lexists(path / entry):
                os.replace(path / entry, made / "old" / entry)
            if (made / entry).exists():
                os.replace(made / entry, path / entry)
    finally:
        if made.exists():
            shutil.rmtree(made)


def _hidden(path: str) -> Path:
    """A new name beside `path`, so that what is there can be renamed to it."""
    place = Path(path)
    return place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
