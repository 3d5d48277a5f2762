"""The listing of INPUT, and the kind of each object.

The kind follows from the name alone, and no object is opened. Only where INPUT is a single file is
it opened, because it may be a list of URLs.
"""

import os
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.plan.walk import walk
from pipeline.schema import Member
from pipeline.storage.files import (
    InputError,
    etag_of,
    join,
    open_location,
    open_object,
    read_object,
    uri,
)
from pipeline.storage.retries import is_transient, retry
from pipeline.storage.urls import identity

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .avif "
    ".jp2 .j2k .ico .tga".split()
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LIST_COLUMNS = ("url", "uri")
FORMATS = ("auto", "images", "tar", "parquet", "urls")
LOOK_AT_ONCE = 16  # concurrent requests for details of objects in a list; latency is the limit

ListedObject = tuple[Member, str | None]  # an object and its kind; None if it is not read


def list_objects(
    input_url: str, format: str, leave_out: str | None = None
) -> Iterator[ListedObject]:
    """Yield every visible object under INPUT with its kind, sorted by name.

    If INPUT is a list of URLs, the objects that it names follow in its order. `leave_out` is a URL
    whose objects are not input, because OUTPUT may be a folder of INPUT.

    Raises InputError if a Parquet list of URLs has no column of URLs.
    """
    fs, root = open_location(input_url, "INPUT")
    info = retry(fs.info, root)
    if info["type"] == "file":
        if format == "urls" or (format == "auto" and _is_list(fs, root)):
            for member in _read_url_list(fs, root):
                yield member, kind_of(member.uri, "auto", listed=True)
        else:
            member = _member(fs, root, info)
            yield member, kind_of(member.uri, format)
        return
    out_fs, out = open_location(leave_out, "OUTPUT") if leave_out else (fs, None)
    hidden = f"{uri(out_fs, out).rstrip('/')}/" if out else None
    for info in walk(fs, root):
        path = info["name"]
        if not _is_file(info) or not _is_visible(path[len(root) :]):
            continue
        if info.get("size") == 0 and path.endswith("/"):
            continue  # the marker of an empty folder in an object store
        member = _member(fs, path, info)
        if hidden is None or not member.uri.startswith(hidden):
            yield member, kind_of(member.uri, format)


def kind_of(name: str, format: str, listed: bool = False) -> str | None:
    """The kind of shard of an object ("files", "tar", "parquet"), or None if it is not read.

    A file without an extension counts as an image. An object that a list names also counts as an
    image. If it is not an image, its row says so.
    """
    if format != "auto":
        return {"images": "files", "urls": "files"}.get(format, format)
    path = urlsplit(name).path if name.startswith(("http://", "https://")) else name
    lower = path.rsplit("/", 1)[-1].lower()
    if lower.endswith(TAR_SUFFIXES):
        return "tar"
    if lower.endswith(".parquet"):
        return "parquet"
    suffix = posixpath.splitext(lower)[1]
    return "files" if listed or suffix in IMAGE_SUFFIXES or not suffix else None


def is_image(name: str) -> bool:
    """Whether the name has the extension of an image format."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def readable_name(name: str) -> str:
    """`name` with bytes that are not UTF-8 escaped (`\\xe9`), because tables hold only UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_visible(below: str) -> bool:
    """Whether no part of a path is hidden.

    Images whose names start with an underscore are visible: cameras write `_DSC0001.JPG`.
    """
    *folders, name = below.strip("/").split("/")
    if any(folder.startswith((".", "_")) for folder in folders):
        return False
    return not name.startswith(".") and (not name.startswith("_") or is_image(name))


def _is_file(info: dict[str, Any]) -> bool:
    """Whether an entry is a file or a local link to a file."""
    linked = bool(info.get("islink")) and os.path.isfile(info["name"])
    return info["type"] == "file" or linked


def _member(fs: AbstractFileSystem, path: str, info: dict[str, Any]) -> Member:
    size = info.get("size")
    name = readable_name(uri(fs, path))
    return Member(name, etag_of(info), -1 if size is None else int(size))


def _is_list(fs: AbstractFileSystem, path: str) -> bool:
    """Whether a file is a list of URLs: text, or Parquet with a URL column and no binary column."""
    if path.endswith(".txt"):
        return True
    if not path.endswith(".parquet"):
        return False
    try:
        with open_object(fs, path) as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:  # Arrow raises OSError for some broken files
        if is_transient(error) or isinstance(error, FileNotFoundError | PermissionError):
            raise
        return False  # the row of the file will describe the damage
    binary = any(pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type) for f in schema)
    nested = any(pa.types.is_struct(f.type) for f in schema)
    return any(name in schema.names for name in LIST_COLUMNS) and not binary and not nested


def _read_url_list(fs: AbstractFileSystem, path: str) -> Iterator[Member]:
    """The objects that a list names, each once. Relative names are in the folder of the list."""
    if path.endswith(".parquet"):
        with open_object(fs, path) as file:
            table = pq.read_table(file)
        column = next((name for name in LIST_COLUMNS if name in table.column_names), None)
        if column is None:
            raise InputError(f"the list {path} has no column named {' or '.join(LIST_COLUMNS)}")
        names = [name for name in table[column].to_pylist() if name]
    else:
        lines = read_object(fs, path).decode("utf-8", "replace").splitlines()
        names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    folder = uri(fs, path).rsplit("/", 1)[0]
    urls = [_absolute_url(name, folder) for name in names]
    seen: set[str] = set()
    with ThreadPoolExecutor(LOOK_AT_ONCE) as pool:
        for member in pool.map(_look_up, dict.fromkeys(urls)):
            if identity(member.uri) not in seen:
                seen.add(identity(member.uri))
                yield member


def _absolute_url(name: str, folder: str) -> str:
    """A name of a list as a URL or an absolute path. Relative names are below `folder`."""
    if "://" in name:
        return name
    path = posixpath.normpath(name)
    return path if path.startswith("/") else join(folder, path)


def _look_up(url: str) -> Member:
    """An object of a list. A missing or forbidden object is planned too; its row will say so."""
    fs, path = open_location(url, "listed image")
    try:
        info = retry(fs.info, path)
    except Exception as error:  # stores raise many types; transient errors end the run
        if is_transient(error):
            raise
        info = {}
    return _member(fs, path, info)
