"""The target of an export: one file, or a folder of many files; local, or in a store."""

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from jobs.exports.earlier_export import (
    TABLE,
    Layout,
    first_unlisted_file,
    has_written_images,
    is_export,
    is_of_format,
)
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import InputError, join, open_location, remove_tree
from pipeline.storage.retries import retry
from pipeline.storage.unfinished import (
    hidden_place,
    named_in_errors,
    put_file_in_place,
    remove_leftovers,
)
from pipeline.storage.urls import mask, printable

FILES_AT_ONCE = 256  # files put into a store together, because each put waits for a request
BYTES_AT_ONCE = 16 << 20  # bytes of such files that wait in memory


def refuse_unwritable(url: str) -> None:
    """Raise InputError if no export can be written to such an address as `url`."""
    if url == "-":
        raise InputError("FILE -: give a file; `query` writes to stdout")
    fs, _ = _open(url)
    if not isinstance(fs, LocalFileSystem) and "http" in fs.protocol:
        raise InputError(
            f"FILE {mask(url)}: web addresses cannot be written to; give s3:// or a path"
        )


def is_local_folder(url: str) -> bool:
    """Whether `url` is a path of this machine."""
    return isinstance(open_location(url, "FILE")[0], LocalFileSystem)


@dataclass(frozen=True)
class FileTarget:
    """One file to write at `url`, which may replace another one with `overwrite`."""

    url: str
    overwrite: bool

    def places(self) -> tuple[str, ...]:
        """Return the URLs that the export writes or deletes."""
        return (self.url,)

    def check_free(self) -> None:
        """InputError if something lies at `url` that must not be replaced."""
        fs, path = _open(self.url)
        with explain_errors("FILE", self.url):
            fs.invalidate_cache()
            is_folder, taken = fs.isdir(path), fs.lexists(path)
            is_special = taken and isinstance(fs, LocalFileSystem) and not os.path.isfile(path)
        if is_folder:
            raise InputError(f"FILE {mask(self.url)} is a folder, and this format is a file")
        if is_special:
            raise InputError(f"FILE {mask(self.url)} is no regular file: give another")
        if taken and not self.overwrite:
            raise _exists(self.url)


@dataclass(frozen=True)
class FolderTarget:
    """A folder to fill at `url`, which may replace an earlier export with `overwrite`."""

    url: str
    overwrite: bool
    layout: Layout
    with_images: bool  # whether the images are written too

    def entries(self) -> tuple[str, ...]:
        """Return the names in the folder that the export writes or deletes, TABLE last.

        Images that an earlier export wrote go with its labels.
        """
        fs, path = _open(self.url)
        with explain_errors("FILE", self.url):
            return self.layout.entries(
                self.with_images or has_written_images(fs, path, self.layout)
            )

    def places(self) -> tuple[str, ...]:
        """Return the URLs that the export writes or deletes."""
        return tuple(join(self.url, entry) for entry in self.entries())

    def check_free(self) -> None:
        """InputError if something lies at `url` that must not be replaced.

        A folder without visible files is free. Of another one, only what an export wrote there may
        be replaced.
        """
        fs, path = _open(self.url)
        shown = mask(self.url)
        with explain_errors("FILE", self.url):
            fs.invalidate_cache()
            is_folder = fs.isdir(path)
            taken = bool(_visible_names(fs, path)) if is_folder else fs.lexists(path)
        if not taken:
            return
        if not is_folder:
            raise InputError(f"FILE {shown} is a file, and this format is a folder")
        if not self.overwrite:
            raise _exists(self.url)
        with explain_errors("FILE", self.url):
            if not is_export(fs, path):
                raise InputError(
                    f"FILE {shown} is a folder that no export wrote, since it has no {TABLE} of "
                    "an export: --overwrite would delete what is in it; give another folder"
                )
            if not is_of_format(fs, path, self.layout):
                raise InputError(f"FILE {shown} is an export to another format: give another FILE")
            other = first_unlisted_file(fs, path, self.layout, self.entries())
        if other is not None:
            raise InputError(
                f"FILE {shown} holds {printable(other)}, which its {TABLE} does not list: "
                "--overwrite would delete it; give another FILE, or move that file away"
            )


def _exists(url: str) -> InputError:
    return InputError(f"FILE {mask(url)} exists: give another, or pass --overwrite")


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system and the path of `url`; a local path is that to which links lead."""
    fs, path = open_location(url, "FILE")
    return fs, os.path.realpath(path) if isinstance(fs, LocalFileSystem) else path


def _visible_names(fs: AbstractFileSystem, path: str) -> list[str]:
    """Return the names in a folder, without hidden ones, which no export writes or deletes."""
    names = (name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))
    return [name for name in names if not name.startswith(".")]


@contextmanager
def one_file(url: str, overwrite: bool = True) -> Iterator[TextIO]:
    """Yield a file to write.

    The whole file appears at `url` when the block ends, or nothing does. A local link stays.
    InputError if a local file has appeared there meanwhile and must not be replaced (`overwrite`).
    """
    fs, path = _open(url)
    if isinstance(fs, LocalFileSystem):
        place = Path(path)
        with ExitStack() as stack:
            with explain_errors("FILE", url):
                place.parent.mkdir(parents=True, exist_ok=True)
                hidden = hidden_place(place, lambda made: made.touch(exist_ok=False))
                temporary = stack.enter_context(hidden)
            with named_in_errors(place), temporary.open("w", encoding="utf-8", newline="") as file:
                yield file
            try:
                put_file_in_place(temporary, place, overwrite)
            except FileExistsError:
                raise _exists(url) from None
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
def folder(target: FolderTarget) -> Iterator[Folder]:
    """Yield a folder to fill. The entries of `target` are replaced, and nothing else is touched.

    TABLE is written last. A local folder appears as a whole when the block ends, or not at all; a
    store cannot do this. A local folder that exists stays, and gets the new entries.

    InputError if something has appeared in a local folder meanwhile that must not be replaced.
    """
    fs, path = _open(target.url)
    if isinstance(fs, LocalFileSystem):
        with _hidden_folder(Path(path), target.url) as made:
            table = made / TABLE
            with named_in_errors(Path(path)), table.open("x", encoding="utf-8", newline="") as file:
                filled = Folder(str(made), file)
                yield filled
                filled.flush()
            target.check_free()
            with explain_errors("FILE", target.url):
                try:
                    _put_in_place(made, Path(path), target.entries())
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        raise _exists(target.url) from None
                    raise
        return
    with explain_errors("FILE", target.url):
        for entry in target.entries():
            remove_tree(fs, f"{path}/{entry}")
    with one_file(join(target.url, TABLE)) as file:
        filled = Folder(target.url, file)
        yield filled
        filled.flush()


@contextmanager
def _hidden_folder(path: Path, url: str) -> Iterator[Path]:
    """Yield a new folder in the folder `path`, or beside it if it does not exist.

    What is left of it when the block ends is deleted.
    """
    with ExitStack() as stack:
        with explain_errors("FILE", url):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            place = path / path.name if path.is_dir() else path
            made = stack.enter_context(hidden_place(place, Path.mkdir))
        yield made


def _put_in_place(made: Path, path: Path, entries: Sequence[str]) -> None:
    """Move `made` to `path`, or its entries if `path` exists: all of them, or none after an error.

    The old entries of `path` go to `made`.
    """
    if not path.exists():
        os.rename(made, path)  # an error if another export has filled a folder there meanwhile
        return
    (made / "old").mkdir()
    with ExitStack() as undo:
        for entry in entries:
            for source, place in ((path, made / "old"), (made, path)):
                if os.path.lexists(source / entry):
                    os.replace(source / entry, place / entry)
                    undo.callback(os.replace, place / entry, source / entry)
        undo.pop_all()
