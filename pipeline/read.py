"""read: Shard -> ENCODED. Every image of a shard becomes one row, failed ones too.

Ray's own `read_webdataset` (2.60) can lose samples in silence when it retries an advanced stream,
and stops at the first corrupt tar; so tars are streamed here.
"""

import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.listing import is_image, readable_name
from pipeline.schema import (
    CORRUPT_SHARD,
    EMPTY_FILE,
    EMPTY_SHARD,
    ENCODED,
    MISSING_BYTES,
    NOTHING_DONE,
    OK,
    UNREADABLE,
    Done,
    Member,
    Shard,
)
from pipeline.storage import describe, is_passing, open_location

ROWS_PER_TABLE = 64  # with photos of 200 kB, about the bytes below
BYTES_PER_TABLE = 16 << 20
MAX_ENCODED_BYTES = 1 << 30  # of one image; more is refused unread
FETCH_AT_ONCE = 16  # loose files requested together: latency, not bandwidth, limits them
PARQUET_ROWS = 16  # decoded together, so that one row group of large images does not fill memory
ID_COLUMNS = ("image_id", "id", "__key__", "key")

Row = dict[str, Any]


def read_shard(shard: Shard, done: Done = NOTHING_DONE) -> Iterator[pa.Table]:
    """ENCODED tables of a shard's images but those that are `done`.

    The last image is read again where no row has yet said that it is the last.
    """
    table: list[Row] = []
    size = 0
    positions = frozenset(done.positions)
    for row in _numbered(shard, done):
        if row["index_in_shard"] in positions and (done.ended or row["shard_size"] is None):
            continue
        table.append(row)
        size += len(row["encoded"] or b"")
        if len(table) >= ROWS_PER_TABLE or size >= BYTES_PER_TABLE:
            yield pa.Table.from_pylist(table, schema=ENCODED)
            table, size = [], 0
    if table:
        yield pa.Table.from_pylist(table, schema=ENCODED)


def _numbered(shard: Shard, done: Done) -> Iterator[Row]:
    """Rows with their position; looks one ahead to know the last."""
    readers = {"files": _files, "tar": _tar, "parquet": _parquet}
    previous: Row | None = None
    count = 0
    for row in _timed(readers[shard.kind](shard)):
        if shard.limit is not None and count == shard.limit:
            break
        if previous is not None:
            yield previous
        previous = {**row, "shard": shard.shard, "index_in_shard": count, "shard_size": None}
        count += 1
    if previous is None:
        member = shard.members[0]
        empty = _failed(member, member.uri, EMPTY_SHARD, "the shard holds no image")
        previous = {**empty, "shard": shard.shard, "index_in_shard": 0}
        count = 1
    before = max(done.positions, default=-1) + 1
    if count < before:
        yield previous
        *lost, previous = _lost(shard, count, before + (not done.ended))
        yield from lost
        count = previous["index_in_shard"] + 1
    yield {**previous, "shard_size": count}


def _lost(shard: Shard, start: int, stop: int) -> Iterator[Row]:
    """Rows for positions that a shard had when it was first read, and now has no more."""
    member = shard.members[0]
    reason = f"the shard had more images when it was first read: now {start}"
    for index in range(start, stop):
        row = _failed(member, f"{member.uri}#lost-{index}", CORRUPT_SHARD, reason)
        yield {**row, "shard": shard.shard, "index_in_shard": index, "shard_size": None}


def _timed(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows with the seconds that each took to come."""
    began = time.perf_counter()
    for row in rows:
        yield {**row, "read_seconds": time.perf_counter() - began}
        began = time.perf_counter()


def _row(member: Member, image_id: str, encoded: bytes) -> Row:
    if not encoded:
        return _failed(member, image_id, EMPTY_FILE, "zero bytes")
    return {
        "image_id": image_id,
        "uri": member.uri,
        "etag": member.etag,
        "status": OK,
        "error": None,
        "encoded": encoded,
    }


def _failed(member: Member, image_id: str, status: str, error: str) -> Row:
    return {
        "image_id": image_id,
        "uri": member.uri,
        "etag": member.etag,
        "status": status,
        "error": error,
        "encoded": None,
    }


def _files(shard: Shard) -> Iterator[Row]:
    """Loose files, fetched FETCH_AT_ONCE together; the name of an image is its URL."""
    with ThreadPoolExecutor(FETCH_AT_ONCE) as pool:
        for start in range(0, len(shard.members), FETCH_AT_ONCE):
            yield from pool.map(_file, shard.members[start : start + FETCH_AT_ONCE])


def _file(member: Member) -> Row:
    """One loose file, failed where it cannot be had."""
    if member.size > MAX_ENCODED_BYTES:
        reason = f"{member.size} bytes are more than {MAX_ENCODED_BYTES}"
        return _failed(member, member.uri, UNREADABLE, reason)
    try:
        fs, path = open_location(member.uri, "image")
        return _row(member, member.uri, fs.cat_file(path))
    except Exception as error:  # of many kinds; those that pass are the run's, not the image's
        if is_passing(error):
            raise
        return _failed(member, member.uri, UNREADABLE, describe(error, member.uri))


# What tarfile raises at the archive's closing zeros, and at the end of a file without them.
_PROPER_ENDS = ("EOFHeaderError", "EmptyHeaderError")


class _StrictTarInfo(tarfile.TarInfo):
    """Raises at a damaged header, which tarfile takes for the end of the archive (unless first)."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ in _PROPER_ENDS:
                raise
            raise tarfile.ReadError(str(error)) from error


def _tar(shard: Shard) -> Iterator[Row]:
    """Image members of a tar, streamed. The name is webdataset's key: the path up to the first dot.

    A key that comes again, as when a sample has two pictures, is told apart by the whole member
    name, and that by a number.
    """
    member = shard.members[0]
    fs, path = open_location(member.uri, "shard")
    seen: set[str] = set()
    count = 0
    try:
        with (
            fs.open(path, "rb") as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictTarInfo) as archive,
        ):
            for entry in archive:
                if not entry.isfile() or not is_image(entry.name):
                    continue
                name = readable_name(entry.name)
                image_id = _unique(f"{member.uri}#{_key(name)}", name, member.uri, seen)
                if entry.size > MAX_ENCODED_BYTES:
                    reason = f"{entry.size} bytes are more than {MAX_ENCODED_BYTES}"
                    yield _failed(member, image_id, UNREADABLE, reason)
                    continue
                content = archive.extractfile(entry)
                assert content is not None  # of a regular file
                encoded = content.read()
                if len(encoded) < entry.size:
                    raise tarfile.ReadError("unexpected end of data")
                count += 1
                yield _row(member, image_id, encoded)
    except Exception as error:  # archives break in many ways
        yield _rest_of(member, count, error, "broken tar")


def _rest_of(member: Member, count: int, error: Exception, broken: str) -> Row:
    """The row for all of an archive behind its first `count` images. Passing errors are raised."""
    if is_passing(error):
        raise error
    gone = isinstance(error, FileNotFoundError | PermissionError)
    reason = describe(error, member.uri) if gone else f"{broken}: {error}"
    name = f"{member.uri}#broken-after-{count}" if count else member.uri
    return _failed(member, name, UNREADABLE if gone else CORRUPT_SHARD, reason)


def _key(name: str) -> str:
    """webdataset's key of a member: its path up to the first dot of its last part."""
    folder, _, last = name.removeprefix("./").rpartition("/")
    key = last.split(".", 1)[0]
    return f"{folder}/{key}" if folder else key


def _unique(image_id: str, name: str, uri: str, seen: set[str]) -> str:
    candidate, again = image_id, 1
    while candidate in seen:
        candidate = f"{uri}#{name}" if again == 1 else f"{uri}#{name}~{again}"
        again += 1
    seen.add(candidate)
    return candidate


def _parquet(shard: Shard) -> Iterator[Row]:
    """Rows of a Parquet file's image column, named by its id column or their number."""
    member = shard.members[0]
    fs, path = open_location(member.uri, "shard")
    count = 0
    seen: set[str] = set()
    try:
        with fs.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            image, ids = _image_column(parquet.schema_arrow), _id_column(parquet.schema_arrow)
            columns = [image] if ids is None else [image, ids]
            for batch in parquet.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                for row in batch.to_pylist():
                    numbered = f"{member.uri}#{count}"
                    named = str(row[ids]) if ids and row[ids] is not None else numbered
                    image_id = named if named not in seen else numbered
                    seen.add(image_id)
                    encoded = row[image]
                    encoded = encoded.get("bytes") if isinstance(encoded, dict) else encoded
                    count += 1
                    if encoded is None:
                        yield _failed(member, image_id, MISSING_BYTES, f"{image} is null")
                    else:
                        yield _row(member, image_id, encoded)
    except Exception as error:  # Arrow's kinds, and the storage's
        yield _rest_of(member, count, error, "broken Parquet file")


def _image_column(schema: pa.Schema) -> str:
    """The column of image bytes, plain or as Hugging Face's struct; ValueError without one."""

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
    """The first of ID_COLUMNS that is text or whole numbers."""
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
