"""formats: read the images of a shard, one row per image. It runs in the reader's child.

Ray's own `read_webdataset` (2.60) can lose samples silently when it retries a stream that has
advanced, and it stops at the first corrupt tar. Tars are therefore streamed here.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from s3fs.utils import FileExpired

from pipeline.isolation.child import Row
from pipeline.plan.listing import is_image
from pipeline.plan.lists import open_member, readable_name
from pipeline.schema import (
    CHANGED,
    CORRUPT_SHARD,
    EMPTY_FILE,
    MISSING_BYTES,
    OK,
    TOO_LARGE,
    UNREADABLE,
    Member,
    Shard,
)
from pipeline.storage import retries
from pipeline.storage.files import (
    InputError,
    StorageUnavailable,
    describe_error,
    etag_of,
    object_info,
    open_object,
    read_object,
)
from pipeline.storage.retries import is_from_store, is_transient, is_unknown_host
from pipeline.storage.tars import open_tar, tar_entries
from pipeline.storage.urls import identity, mask

MAX_ENCODED_BYTES = 256 << 20  # size limit of one image file; a larger image is not read
FETCH_AT_ONCE = 16  # concurrent requests for loose files; latency, not bandwidth, is the limit
PARQUET_ROWS = 16  # rows decoded together, so that a row group of large images does not fill memory
PARQUET_BUFFER = 1 << 20  # bytes of a column that are read at once
LONGEST_ID = 4096  # characters; a longer value of an id column names no image
ID_COLUMNS = ("image_id", "id", "__key__", "key")


def _row(member: Member, image_id: str, encoded: bytes) -> Row:
    if not encoded:
        return failed_image(member, image_id, EMPTY_FILE, "zero bytes")
    return {
        "image_id": image_id,
        "uri": identity(member.uri),
        "etag": member.etag,
        "status": OK,
        "error": None,
        "encoded": encoded,
    }


def failed_image(member: Member, image_id: str, status: str, error: str) -> Row:
    """The row of an image that could not be read. The error is written without secrets."""
    return {
        "image_id": image_id,
        "uri": identity(member.uri),
        "etag": member.etag,
        "status": status,
        "error": mask(error, member.uri),
        "encoded": None,
    }


def read_rows(shard: Shard, start: int) -> Iterator[Row]:
    """Yield the rows of the shard's images without the first `start`.

    Raises StorageUnavailable if the store is unavailable.
    """
    rows = (
        _read_files(shard, start)
        if shard.kind == "files"
        else islice(_ARCHIVES[shard.kind](shard), start, None)
    )
    before = retries.repeated
    for row in rows:
        yield {**row, "retries": retries.repeated - before}
        before = retries.repeated


def _read_files(shard: Shard, start: int) -> Iterator[Row]:
    """Rows of loose files, fetched FETCH_AT_ONCE at a time. The id of an image is its URL."""
    with ThreadPoolExecutor(FETCH_AT_ONCE) as pool:
        for first in range(start, len(shard.members), FETCH_AT_ONCE):
            yield from pool.map(_read_file, shard.members[first : first + FETCH_AT_ONCE])


def _read_file(member: Member) -> Row:
    """The row of one loose file; a failed row if the file cannot be read."""
    if member.size > MAX_ENCODED_BYTES:
        return failed_image(member, identity(member.uri), TOO_LARGE, _too_large(member.size))
    try:
        fs, path = open_member(member, "image")
        # One byte more than there should be shows that there is more.
        most = member.size if member.size >= 0 else MAX_ENCODED_BYTES
        encoded = read_object(fs, path, most + 1 if most else 0)
        if len(encoded) > MAX_ENCODED_BYTES:
            return failed_image(member, identity(member.uri), TOO_LARGE, _too_large(len(encoded)))
        if not _as_planned(fs, path, member, encoded):
            return failed_image(member, identity(member.uri), CHANGED, _CHANGED)
        return _row(member, identity(member.uri), encoded)
    except Exception as error:  # stores raise many types; transient errors end the run instead
        _raise_passing(error, member)
        return failed_image(
            member, identity(member.uri), UNREADABLE, describe_error(error, member.uri)
        )


_CHANGED = "the object changed after it was listed: the next run labels what is there now"


def _too_large(size: int) -> str:
    return f"{size} bytes are more than {MAX_ENCODED_BYTES}"


def _as_planned(fs: AbstractFileSystem, path: str, member: Member, content: bytes) -> bool:
    """Whether `content` is the version that was listed.

    The store is asked only if the bytes do not decide it.
    """
    if member.size >= 0 and len(content) != member.size:
        return False
    # S3's ETag is the MD5 of an object that one request wrote, unless a key encrypts the object.
    if len(member.etag) == 32:
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest == member.etag:
            return True
    return _is_planned(fs, path, member)


def _is_planned(fs: AbstractFileSystem, path: str, member: Member) -> bool:
    """Whether the object is still the version that was listed, as far as the store can tell."""
    if "http" in fs.protocol:  # one address may lead to many servers, each with its own etags
        return True
    return etag_of(object_info(fs, path)) == member.etag


def _raise_passing(error: Exception, member: Member) -> None:
    """Raise StorageUnavailable if `error` is transient and says nothing about the object itself."""
    if isinstance(error, StorageUnavailable):
        raise error
    if is_transient(error) and not is_unknown_host(error, member.uri):
        raise StorageUnavailable(describe_error(error, member.uri)) from error


def _read_tar(shard: Shard) -> Iterator[Row]:
    """Stream the image members of a tar. The id ends with webdataset's key of the member.

    The key is the path up to the first dot. If a key occurs again, for example because a sample has
    two images, the id uses the whole member name. If that occurs again, a number follows it.
    """
    member = shard.members[0]
    archive_uri = identity(member.uri)
    names = _Names()
    count = 0
    try:
        fs, path = open_member(member, "shard")
        with _open_version(fs, path, member) as file, open_tar(file, "r|*") as archive:
            for entry in tar_entries(archive):
                if not entry.isfile() or not is_image(entry.name):
                    continue
                name = readable_name(entry.name)
                image_id = names.unique(f"{archive_uri}#{_key(name)}", f"{archive_uri}#{name}")
                if entry.size > MAX_ENCODED_BYTES:
                    yield failed_image(member, image_id, TOO_LARGE, _too_large(entry.size))
                    continue
                content = archive.extractfile(entry)
                assert content is not None  # the entry is a regular file
                encoded = content.read()
                if len(encoded) < entry.size:
                    raise tarfile.ReadError("unexpected end of data")
                count += 1
                yield _row(member, image_id, encoded)
    except Exception as error:  # archives break in many ways
        yield _row_of_rest(member, count, error, "broken tar", names)


class _Names:
    """The ids of the images of an archive, each of which is given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._next: dict[str, int] = {}  # by name: the first number that may be free

    def unique(self, *candidates: str) -> str:
        """The first candidate that was not given yet, or the last one with a number behind it."""
        for name in candidates:
            if name not in self._given:
                self._given.add(name)
                return name
        number = self._next.get(candidates[-1], 2)
        while (name := f"{candidates[-1]}~{number}") in self._given:
            number += 1
        self._next[candidates[-1]] = number + 1
        self._given.add(name)
        return name


class _OtherVersion(Exception):
    """The archive is not the version that was listed."""


@contextmanager
def _open_version(fs: AbstractFileSystem, path: str, member: Member) -> Iterator[BinaryIO]:
    """Open the archive for reading, and check its version at the start and at the end.

    Raises _OtherVersion if it is not the version that was listed. (s3fs raises FileExpired if it
    finds a new version between two requests.)
    """
    with open_object(fs, path) as file:
        if not _is_planned(fs, path, member):
            raise _OtherVersion
        yield file
    if not _is_planned(fs, path, member):
        raise _OtherVersion


def _row_of_rest(member: Member, count: int, error: Exception, broken: str, names: _Names) -> Row:
    """The failed row for the rest of an archive, after its first `count` images.

    Raises StorageUnavailable for a transient error.
    """
    _raise_passing(error, member)
    if isinstance(error, FileExpired | _OtherVersion):
        name = names.unique(f"{identity(member.uri)}#changed-after-{count}")
        return failed_image(member, name, CHANGED, _CHANGED)
    gone = isinstance(error, InputError) or is_from_store(error)
    reason = describe_error(error, member.uri) if gone else f"{broken}: {error}"
    name = f"{identity(member.uri)}#broken-after-{count}" if count else identity(member.uri)
    name = names.unique(name)
    return failed_image(member, name, UNREADABLE if gone else CORRUPT_SHARD, reason)


def _key(name: str) -> str:
    """webdataset's key of a member: its path up to the first dot of the file name."""
    folder, _, last = name.removeprefix("./").rpartition("/")
    key = last.split(".", 1)[0]
    return f"{folder}/{key}" if folder else key


def _read_parquet(shard: Shard) -> Iterator[Row]:
    """Rows of a Parquet file's image column. The id is from the id column, or the row's number."""
    member = shard.members[0]
    count = 0
    names = _Names()
    try:
        fs, path = open_member(member, "shard")
        with _open_version(fs, path, member) as file:
            for image_id, value in _rows_of_parquet(file):
                row_id = f"{identity(member.uri)}#{count}"
                name = names.unique(row_id if image_id is None else image_id, row_id)
                count += 1
                if isinstance(value, int):
                    yield failed_image(member, name, TOO_LARGE, _too_large(value))
                elif value is None:
                    yield failed_image(member, name, MISSING_BYTES, "the image column is null")
                else:
                    yield _row(member, name, value)
    except Exception as error:  # errors of Arrow and of the storage
        yield _row_of_rest(member, count, error, "broken Parquet file", names)


def _rows_of_parquet(file: BinaryIO) -> Iterator[tuple[str | None, bytes | int | None]]:
    """The id and the image of each row. The image is None for null.

    An image above MAX_ENCODED_BYTES is not copied, and only its size is given. Arrow decodes it all
    the same, since it reads Parquet by pages. Rows of a row group that may hold such an image are
    therefore decoded one by one.
    """
    parquet = pq.ParquetFile(file, buffer_size=PARQUET_BUFFER, pre_buffer=False)
    image, ids = _image_column(parquet.schema_arrow), _id_column(parquet.schema_arrow)
    columns = [image] if ids is None else [image, ids]
    for group in range(parquet.num_row_groups):
        large = _bytes_of_column(parquet.metadata.row_group(group), image) > MAX_ENCODED_BYTES
        rows = 1 if large else PARQUET_ROWS
        for batch in parquet.iter_batches(rows, row_groups=[group], columns=columns):
            values = batch.column(image)
            while pa.types.is_struct(values.type):
                values = pc.struct_field(values, "bytes")
            sizes = pc.binary_length(values).to_pylist()
            for index, size in enumerate(sizes):
                image_id = _id(batch.column(ids)[index]) if ids else None
                large = size is not None and size > MAX_ENCODED_BYTES
                yield image_id, size if large else values[index].as_py()


def _bytes_of_column(group: pq.RowGroupMetaData, name: str) -> int:
    """The size of a column in a row group, decompressed."""
    columns = (group.column(index) for index in range(group.num_columns))
    of_image = (one for one in columns if one.path_in_schema.split(".")[0] == name)
    return sum(one.total_uncompressed_size for one in of_image)


def _id(value: pa.Scalar) -> str | None:
    """The id in a column. None if it is null, or too long to be a name."""
    text = value.as_py()
    return None if text is None or len(str(text)) > LONGEST_ID else identity(str(text))


def _image_column(schema: pa.Schema) -> str:
    """The name of the column of image bytes, which may be binary or Hugging Face's struct.

    Raises ValueError if there is no such column.
    """

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(f.name == "bytes" and holds_bytes(f.type) for f in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    candidates = [field.name for field in schema if holds_bytes(field.type)]
    preferred = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes")
    for name in (*preferred, *candidates):
        if name in candidates:
            return name
    raise ValueError(f"no column of image bytes among {', '.join(schema.names)}")


def _id_column(schema: pa.Schema) -> str | None:
    """The first of ID_COLUMNS that exists and holds text or integers; None if there is none."""
    for name in ID_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if (
                pa.types.is_string(kind)
                or pa.types.is_large_string(kind)
                or pa.types.is_integer(kind)
            ):
                return name
    return None


_ARCHIVES = {"tar": _read_tar, "parquet": _read_parquet}
