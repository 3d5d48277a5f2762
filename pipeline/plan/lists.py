"""Lists of URLs: the objects that they name, each of which becomes a row.

A list may come from anybody. An address that is bad, or that the list may not name, costs one row
of `images`, which gives the reason.
"""

import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.formats.members import make_member
from pipeline.schema import NOT_ALLOWED, UNSEEN, Member
from pipeline.storage.files import (
    InputError,
    StorageUnavailable,
    describe_error,
    join,
    object_info,
    open_location,
    open_object,
    read_object,
    uri,
)
from pipeline.storage.protocols import is_local, protocol_of
from pipeline.storage.retries import is_transient, is_unknown_host
from pipeline.storage.urls import identity, mask

LIST_COLUMNS = ("url", "uri")
LOOK_AT_ONCE = 16  # concurrent requests for details of objects in a list; latency is the limit
LOOKED_UP_TOGETHER = 1 << 12  # addresses whose requests wait in memory


def is_list(fs: AbstractFileSystem, path: str) -> bool:
    """Whether a file is a list of URLs: text, or Parquet with a URL column and no binary column."""
    if _file_name(fs, path).endswith(".txt"):
        return True
    if not _file_name(fs, path).endswith(".parquet"):
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


def _file_name(fs: AbstractFileSystem, path: str) -> str:
    """The path without the parameters of a web address."""
    return path.partition("?")[0] if "http" in fs.protocol else path


def read_url_list(fs: AbstractFileSystem, path: str) -> Iterator[Member]:
    """The objects that a list names, each once, in its order.

    Relative names are below the folder of the list. A remote list may name remote objects only:
    `NOT_ALLOWED` marks the others. Raises InputError if a Parquet list has no column of URLs.
    """
    in_parquet = _file_name(fs, path).endswith(".parquet")
    names = _names_in_parquet(fs, path) if in_parquet else _names_in_text(fs, path)
    folder = uri(fs, _file_name(fs, path)).rsplit("/", 1)[0]
    remote = not is_local(folder)
    urls = iter(dict.fromkeys(absolute_url(name, folder) for name in names))
    seen: set[str] = set()
    with ThreadPoolExecutor(LOOK_AT_ONCE) as pool:
        while some := list(islice(urls, LOOKED_UP_TOGETHER)):
            for member in pool.map(lambda url: _look_up(url, remote), some):
                if (name := identity(member.uri)) not in seen:
                    seen.add(name)
                    yield member


def _names_in_text(fs: AbstractFileSystem, path: str) -> list[str]:
    lines = read_object(fs, path).decode("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _names_in_parquet(fs: AbstractFileSystem, path: str) -> Iterable[str]:
    with open_object(fs, path) as file:
        schema = pq.read_schema(file)
        column = next((name for name in LIST_COLUMNS if name in schema.names), None)
        kind = schema.field(column).type if column else pa.null()
        if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            raise InputError(
                f"the list {mask(path)} has no column of text named {' or '.join(LIST_COLUMNS)}"
            )
        file.seek(0)
        names = pq.read_table(file, columns=[column])[column].to_pylist()
    return [name.strip() for name in names if name and name.strip()]


def absolute_url(name: str, folder: str) -> str:
    """A name of a list as a URL or an absolute path. Relative names are below the URL `folder`.

    `..` in a name never leaves the server or the bucket of a remote list.
    """
    if protocol_of(name) is not None:
        return name
    path = posixpath.normpath(name)
    if path.startswith("/"):
        return path
    if not is_local(folder):
        while path == ".." or path.startswith("../"):
            above = folder.rsplit("/", 1)[0]
            folder = folder if above.endswith("/") else above  # s3://bucket is the top
            path = path[3:]
    return join(folder, path)


def _look_up(url: str, remote_list: bool) -> Member:
    """An object of a list. An object that cannot be looked at is planned; its row will say why."""
    if remote_list and is_local(url):
        return Member(url, NOT_ALLOWED, -1)
    try:
        fs, path = open_location(url, "listed image")
    except InputError:
        return Member(url, UNSEEN, -1)
    try:
        info = object_info(fs, path)
    except Exception as error:  # stores raise many types; transient errors end the run
        if is_transient(error) and not is_unknown_host(error, url):
            raise StorageUnavailable(
                f"the listed image {describe_error(error, url)}. Run the same command again when "
                "it can, or take the address out of the list"
            ) from error
        info = {}
    return make_member(fs, path, info)
