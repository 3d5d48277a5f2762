"""The target of an export: one file, or a folder of many files; local, or in a store."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TextIO, cast

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.files import InputError, explain_errors, join, open_location, remove_tree
from pipeline.storage.retries import retry
from pipeline.storage.urls import mask

TABLE = "images.csv"  # of an export to a folder; it is written last
FILES_AT_ONCE = 256  # files put into a store together, because each put waits for a request
BYTES_AT_ONCE = 16 << 20  # bytes of such files that wait in memory
MARK = ".written-by-export"  # a file in a folder of images that an export wrote


def check_free(url: str, entries: Sequence[str], overwrite: bool, images: str = "") -> None:
    """Check that an export may be written to `url`.

    `entries` are the names that a folder will hold; if existing are none, `url` will be a file.
    `images` is the folder in it that will hold the images, if the export writes them. InputError if
    `url` cannot be written to, or if it exists and must not be overwritten.
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
        is_export = taken and is_folder and fs.exists(join(path, TABLE))
    if taken and bool(entries) != is_folder:
        existing, wanted = ("folder", "file") if is_folder else ("file", "folder")
        raise InputError(f"FILE {mask(url)} is a {existing}, and this format is a {wanted}")
    if taken and not overwrite:
        raise InputError(f"FILE {mask(url)} exists: give another, or pass --overwrite")
    if taken and is_folder and not is_export:
        raise InputError(
            f"FILE {mask(url)} is a folder that no export wrote, since it has no {TABLE}: "
            "--overwrite would delete what is in it; give another folder"
        )
    if taken and images and fs.exists(join(path, images)) and not has_written_images(url, images):
        raise InputError(
            f"FILE {mask(url)} has a folder {images} that no export wrote: give another FILE, or "
            "move that folder away"
        )


def is_local_folder(url: str) -> bool:
    """Whether `url` is a path of this machine."""
    return isinstance(open_location(url, "FILE")[0], LocalFileSystem)


def has_written_images(url: str, images: str) -> bool:
    """Whether the folder `images` below `url` was written by an export."""
    fs, path = open_location(url, "FILE")
    with explain_errors("FILE", url):
        return bool(fs.exists(join(path, images, MARK)))


@contextmanager
def one_file(url: str) -> Iterator[TextIO]:
    """Yield a file to write.

    The whole file appears at `url` when the block ends, or nothing does.
    """
    fs, path = open_location(url, "FILE")
    if isinstance(fs, LocalFileSystem):
        temporary = _hidden_name(path)
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
    """A folder of many small files, and one table that maps them to images."""

    def __init__(self, url: str, table: TextIO):
        self.table = table
        self._url = url
        self._fs, self._path = open_location(url, "FILE")
        self._waiting: dict[str, bytes] = {}
        self._bytes_waiting = 0

    def add(self, name: str, content: str | bytes) -> None:
        """Add a file at `name`, a safe relative path."""
        data = content.encode() if isinstance(content, str) else content
        self._waiting[f"{self._path}/{name}"] = data
        self._bytes_waiting += len(data)
        if len(self._waiting) == FILES_AT_ONCE or self._bytes_waiting >= BYTES_AT_ONCE:
            self.flush()

    def add_link(self, name: str, path: str) -> None:
        """Add a symbolic link at `name` to a local file; the folder is local too."""
        link = Path(self._path, name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)

    def open_text(self, name: str) -> AbstractContextManager[TextIO]:
        """Open a file at `name` for writing, for a text that may be large."""
        return one_file(join(self._url, name))

    def flush(self) -> None:
        """Write the files that were added."""
        if isinstance(self._fs, LocalFileSystem):
            for name, content in self._waiting.items():
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(content)
        elif self._waiting:
            with explain_errors("FILE", self._url):
                retry(self._fs.pipe, self._waiting)
        self._waiting, self._bytes_waiting = {}, 0


@contextmanager
def folder(url: str, entries: Sequence[str], table: str) -> Iterator[Folder]:
    """Yield a folder to fill. Existing `entries` in it are replaced, and nothing else is touched.

    `table` is one of the entries, and is written last. A new local folder appears as a whole when
    the block ends, or not at all; a store cannot do this.
    """
    fs, path = open_location(url, "FILE")
    if isinstance(fs, LocalFileSystem):
        with (
            _replace_local_folder(Path(path), entries) as place,
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
def _replace_local_folder(path: Path, entries: Sequence[str]) -> Iterator[Path]:
    """Yield a hidden folder beside `path`; when the block ends, it replaces `path`.

    If `path` already holds files, only its entries are replaced.
    """
    made = _hidden_name(str(path))
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


def _hidden_name(path: str) -> Path:
    """Return a new name beside `path`, so that the file existing can be renamed to `path`."""
    place = Path(path)
    return place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
