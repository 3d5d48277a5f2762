"""Tars for tests, and what became of the images in them."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.formats.counting import count_images
from pipeline.formats.read import read_rows
from pipeline.schema import Member, Shard
from tests.support.samples import jpeg

Read = Callable[[bytes], dict[str, Any]]
Entry = tuple[str, bytes] | tuple[str, bytes, str]  # name and bytes, or name, type and target

A, B, C = jpeg(1), jpeg(2), jpeg(3)
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: (
        subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout
    ),
}
if not shutil.which("zstd"):
    del PACKED["zstd"]


def tar_bytes(*entries: Entry, **options: Any) -> bytes:
    """A tar with these entries: files, and links or others if a type and a target are given."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry[0])
            if len(entry) == 3:
                info.type, info.linkname = entry[1], entry[2]
                archive.addfile(info)
            else:
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return file.getvalue()


def without_end(archive: bytes) -> bytes:
    """An archive without the zeros at its end."""
    content = archive.rstrip(b"\0")
    return content + bytes(-len(content) % 512)


def hard(name: str, target: str) -> Entry:
    return name, tarfile.LNKTYPE, target


def soft(name: str, target: str) -> Entry:
    return name, tarfile.SYMTYPE, target


def rows_of(path: Path, start: int = 0) -> list[dict[str, Any]]:
    return list(read_rows(_shard(path), start))


def etag(path: Path) -> str:
    info = path.stat()
    return f"{int(info.st_mtime * 1e9)}-{info.st_size}"


def outcomes(path: Path, content: bytes) -> dict[str, Any]:
    """Write a tar and read it: what became of each image, by the end of its id.

    It is an image's bytes, or its status and its error.
    """
    path.write_bytes(content)
    rows = rows_of(path)
    ids = [row["image_id"] for row in rows]
    assert len(set(ids)) == len(ids)
    for start in range(len(rows)):
        assert [row["image_id"] for row in rows_of(path, start)] == ids[start:]
    assert counted(path) == max(len(rows), 1)
    return {
        row["image_id"].partition(f"{path.name}#")[2]: row["encoded"]
        or f"{row['status']}: {row['error']}"
        for row in rows
    }


def counted(path: Path) -> int:
    """The number of images that a plan with a limit counts, in a child there."""
    (row,) = count_images(_shard(path), 100)
    return int(row["images"])


def _shard(path: Path) -> Shard:
    return Shard(f"file://{path}", "tar", (Member(f"file://{path}", etag(path), -1),))
