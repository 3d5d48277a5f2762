"""What an earlier export wrote into a folder, by its table: `--overwrite` deletes nothing else."""

import csv
import io
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from jobs.exports.reader import MAPPING
from pipeline.storage.files import join, list_files, open_object, read_object

TABLE = "images.csv"  # of an export to a folder; it is written last
MARK = ".written-by-export"  # a file in a folder of images that an export wrote


@dataclass(frozen=True)
class Layout:
    """What an export to a folder holds."""

    labels: str  # folder of the label files
    files: tuple[str, ...]  # paths of the files that exist once; the last is TABLE
    images: str  # folder of the images, if the export writes them

    def entries(self, with_images: bool) -> tuple[str, ...]:
        """Return the names in the folder, TABLE last."""
        images = (self.images,) if with_images else ()
        files = (file.partition("/")[0] for file in self.files)
        return tuple(dict.fromkeys((self.labels, *images, *files)))


def is_export(fs: AbstractFileSystem, path: str) -> bool:
    """Whether an export wrote the folder `path`: its table has the header that exports write."""
    header = ",".join(MAPPING).encode()
    table = join(path, TABLE)
    return bool(fs.isfile(table)) and read_object(fs, table, len(header)) == header


def has_written_images(fs: AbstractFileSystem, path: str, layout: Layout) -> bool:
    """Whether an export wrote the images in the folder `path`."""
    return bool(fs.exists(join(path, layout.images, MARK)))


def is_of_format(fs: AbstractFileSystem, path: str, layout: Layout) -> bool:
    """Whether the table of the export `path` lists label files of this format, or none."""
    first = next(iter(_read_table(fs, path)), None)
    return first is None or first["file"].startswith(f"{layout.labels}/")


def first_unlisted_file(
    fs: AbstractFileSystem, path: str, layout: Layout, entries: Iterable[str]
) -> str | None:
    """Return the first file in `entries` of the export `path` that the export did not write.

    The result is relative to `path`; None if the export wrote all of them. Images are those of an
    export only if has_written_images. The names that the table lists are in a temporary file of
    SQLite, so that any number of images fits.
    """
    with closing(sqlite3.connect("")) as listed:
        listed.execute("PRAGMA synchronous = OFF")
        listed.execute("CREATE TABLE listed (name BLOB PRIMARY KEY) WITHOUT ROWID")
        names = _listed_files(fs, path, layout)
        listed.executemany("INSERT OR IGNORE INTO listed VALUES (?)", ((_key(n),) for n in names))
        for entry in entries:
            for file in _files(fs, join(path, entry)):
                name = file[len(path.rstrip("/")) + 1 :]
                found = listed.execute("SELECT 1 FROM listed WHERE name = ?", (_key(name),))
                if found.fetchone() is None:
                    return name
    return None


def _listed_files(fs: AbstractFileSystem, path: str, layout: Layout) -> Iterator[str]:
    """Yield the files that the export `path` wrote."""
    yield from layout.files
    with_images = has_written_images(fs, path, layout)
    if with_images:
        yield join(layout.images, MARK)
    for row in _read_table(fs, path):
        yield row["file"]
        if with_images:
            yield join(layout.images, row["picture"])


def _read_table(fs: AbstractFileSystem, path: str) -> Iterator[dict[str, str]]:
    with io.TextIOWrapper(open_object(fs, join(path, TABLE)), "utf-8", newline="") as file:
        yield from csv.DictReader(file, restval="")


def _files(fs: AbstractFileSystem, path: str) -> Iterator[str]:
    """Yield the files at or below `path`. A link is a file, wherever it leads."""
    if not isinstance(fs, LocalFileSystem):
        yield from list_files(fs, path)
    elif os.path.isdir(path) and not os.path.islink(path):
        for name in sorted(os.listdir(path)):
            yield from _files(fs, join(path, name))
    elif os.path.lexists(path):
        yield path


def _key(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
