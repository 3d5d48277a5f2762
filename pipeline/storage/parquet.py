"""Parquet files of OUTPUT that tell whether they are whole.

Pages have checksums, for tasks that read a part of a file. These do not cover the headers of pages
and the footer: of all bits of a plan of 6 shards, 12 of 44,648 could be flipped and images were
lost without a word, and of a block of 5 images 3 of 66,072 (2026-11-26). So the footer also has
the digest of the file, with zeros in its own place. Versions before 0.2 wrote neither: their files
are read as far as Parquet can tell.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.errors import DamagedFile
from pipeline.storage.urls import mask

KEY, MARK, BLANK = b"digest", b"detr-batch-sha256:", b"0" * 64  # of the footer's metadata
_DIGEST = re.compile(re.escape(MARK) + rb"(.{64})", re.DOTALL)
_TAIL = 8  # bytes behind the footer: its length, and a magic word
PIECE = 1 << 20  # bytes read at once


def write_parquet(
    file: BinaryIO, schema: pa.Schema, groups: Iterable[pa.Table], **options: Any
) -> None:
    """Write tables as row groups into an empty file, which is open for reading too.

    The options are those of ParquetWriter.
    """
    options = {"compression": "zstd", "write_page_checksum": True, **options}
    with pq.ParquetWriter(file, schema, **options) as writer:
        for group in groups:
            writer.write_table(group)
        writer.add_key_value_metadata({KEY: MARK + BLANK})
    place = _place_of_digest(file)
    assert place is not None
    digest = _digest_of(file, place)
    file.seek(place)
    file.write(digest)


def read_tables(
    file: BinaryIO, url: str, schema: pa.Schema, columns: Sequence[str], rows: int = 1 << 16
) -> Iterator[pa.Table]:
    """Some columns of the file at `url`, which is open, so many rows at a time.

    DamagedFile where it is not whole, or where its columns are not of `schema`. Columns that it
    lacks are left out: older versions had fewer.
    """
    with name_damage(url):
        has_digest = _check_digest(file)
        parquet = _opened(file, schema)
        if not has_digest and KEY in (parquet.metadata.metadata or {}):
            raise pa.ArrowInvalid("the mark of the digest is damaged")
        names = [name for name in columns if name in parquet.schema_arrow.names]
        found = 0
        for batch in parquet.iter_batches(rows, columns=names):
            batch.validate(full=True)
            found += len(batch)
            yield pa.Table.from_batches([batch]).replace_schema_metadata()
        if found != parquet.metadata.num_rows:  # a row group may say that it has fewer
            raise pa.ArrowInvalid(f"{found} rows where {parquet.metadata.num_rows} were written")


def read_group(file: BinaryIO, url: str, schema: pa.Schema, group: int) -> pa.Table:
    """A row group of the file at `url`, which is open: its pages are checked, not its digest."""
    with name_damage(url):
        table = _opened(file, schema).read_row_group(group)
        table.validate(full=True)
        return table


def _opened(file: BinaryIO, schema: pa.Schema) -> pq.ParquetFile:
    """ArrowInvalid for columns that `schema` does not have."""
    parquet = pq.ParquetFile(
        file, buffer_size=PIECE, pre_buffer=False, page_checksum_verification=True
    )
    found = parquet.schema_arrow
    if strange := [field.name for field in found if field not in schema]:
        raise pa.ArrowInvalid(f"strange columns {strange}")
    return parquet


@contextmanager
def name_damage(url: str) -> Iterator[None]:
    """DamagedFile, naming the file at `url`, for what Parquet's reader finds wrong inside.

    Errors of the storage below it pass as they are, and so does a lack of memory.
    """
    try:
        yield
    except (pa.ArrowCancelled, pa.ArrowMemoryError):
        raise
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise damaged(url) from error
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:
            raise
        raise damaged(url) from error  # Arrow says so of pages; errors of storage have a number


def damaged(url: str) -> DamagedFile:
    return DamagedFile(
        f"{mask(url)} is damaged: put back what was there, from a backup or an older version of "
        "the object"
    )


def _check_digest(file: BinaryIO) -> bool:
    """Whether the file has a digest. ArrowInvalid where that is of other bytes."""
    place = _place_of_digest(file)
    if place is not None:
        file.seek(place)
        if file.read(len(BLANK)) != _digest_of(file, place):
            raise pa.ArrowInvalid("the digest is that of other bytes")
    file.seek(0)
    return place is not None


def _place_of_digest(file: BinaryIO) -> int | None:
    """Where the digest begins; None where there is none. It is the last such text of the footer."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _TAIL))
    length = int.from_bytes(file.read(4), "little") + _TAIL
    start = file.seek(max(0, end - length))
    found = list(_DIGEST.finditer(file.read(length)))
    return start + found[-1].start(1) if found else None


def _digest_of(file: BinaryIO, place: int) -> bytes:
    """SHA-256 of a file with zeros where its digest is."""
    file.seek(0)
    digest = hashlib.sha256()
    left = place
    while piece := file.read(min(PIECE, left)):
        digest.update(piece)
        left -= len(piece)
    digest.update(BLANK)
    file.seek(place + len(BLANK))
    while piece := file.read(PIECE):
        digest.update(piece)
    return digest.hexdigest().encode()
