"""Parquet files of OUTPUT whose damage is detected.

Pages have checksums, for tasks that read a part of a file. The checksums do not cover the headers
of pages and the footer. A flip of any one of 12 bits among the 44,648 of a plan of 6 shards lost
images silently, and so did 3 bits among the 66,072 of a block of 5 images (2026-11-26). The footer
therefore also holds a digest of the file, which is computed with zeros in place of the digest.
Versions before 0.2 wrote neither. In their files only the damage that Parquet detects is found.
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

# Key of the digest in the footer's metadata, start of its value, and the placeholder of its value.
KEY, MARK, BLANK = b"digest", b"detr-batch-sha256:", b"0" * 64
_DIGEST = re.compile(re.escape(MARK) + rb"(.{64})", re.DOTALL)
_TAIL = 8  # bytes after the footer: its length and a magic word
PIECE = 1 << 20  # bytes that are read at once


def write_parquet(
    file: BinaryIO, schema: pa.Schema, groups: Iterable[pa.Table], **options: Any
) -> None:
    """Write each table as a row group into an empty file, and add the digest to the footer.

    `file` must be open for writing and reading. `options` are passed to ParquetWriter.
    """
    options = {"compression": "zstd", "write_page_checksum": True, **options}
    with pq.ParquetWriter(file, schema, **options) as writer:
        for group in groups:
            writer.write_table(group)
        writer.add_key_value_metadata({KEY: MARK + BLANK})
    offset = _place_of_digest(file)
    assert offset is not None
    digest = _digest_of(file, offset)
    file.seek(offset)
    file.write(digest)


def read_tables(
    file: BinaryIO, url: str, schema: pa.Schema, columns: Sequence[str], rows: int = 1 << 16
) -> Iterator[pa.Table]:
    """Yield `columns` of an open file in tables of up to `rows` rows. `url` names it in errors.

    Columns that the file lacks are left out, because older versions wrote fewer columns. Raises
    DamagedFile if the file is not whole, or if it has columns that are not in `schema`.
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
        if found != parquet.metadata.num_rows:  # the header of a row group may give fewer rows
            raise pa.ArrowInvalid(f"{found} rows where {parquet.metadata.num_rows} were written")


def read_group(file: BinaryIO, url: str, schema: pa.Schema, group: int) -> pa.Table:
    """One row group of an open file. `url` names the file in errors.

    The checksums of the pages are checked, but not the digest of the file. Raises DamagedFile.
    """
    with name_damage(url):
        table = _opened(file, schema).read_row_group(group)
        table.validate(full=True)
        return table


def _opened(file: BinaryIO, schema: pa.Schema) -> pq.ParquetFile:
    """A reader of the file. Raises ArrowInvalid if it has columns that are not in `schema`."""
    parquet = pq.ParquetFile(
        file, buffer_size=PIECE, pre_buffer=False, page_checksum_verification=True
    )
    found = parquet.schema_arrow
    if strange := [field.name for field in found if not _is_expected(field, schema)]:
        raise pa.ArrowInvalid(f"strange columns {strange}")
    return parquet


def completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of `schema`, in its order; null where it lacks them."""
    columns = [
        table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _is_expected(field: pa.Field, schema: pa.Schema) -> bool:
    """Whether `schema` has the field. One of type null stands for a field of any type."""
    return field in schema or pa.field(field.name, pa.null()) in schema


@contextmanager
def name_damage(url: str) -> Iterator[None]:
    """Convert the errors of Parquet's reader in the `with` block to DamagedFile, which names `url`.

    Storage errors and errors for lack of memory pass unchanged.
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
        # Arrow raises a plain OSError for damaged pages. Errors of the storage have an errno.
        raise damaged(url) from error


def damaged(url: str) -> DamagedFile:
    """The error for a damaged file at `url`."""
    return DamagedFile(
        f"{mask(url)} is damaged: put back what was there, from a backup or an older version of "
        "the object"
    )


def _check_digest(file: BinaryIO) -> bool:
    """Whether the file has a digest. Raises ArrowInvalid if the digest does not match the file."""
    offset = _place_of_digest(file)
    if offset is not None:
        file.seek(offset)
        if file.read(len(BLANK)) != _digest_of(file, offset):
            raise pa.ArrowInvalid("the digest is that of other bytes")
    file.seek(0)
    return offset is not None


def _place_of_digest(file: BinaryIO) -> int | None:
    """The offset of the digest in bytes; None if there is no digest.

    The digest is the last text of this form in the footer.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _TAIL))
    length = int.from_bytes(file.read(4), "little") + _TAIL
    start = file.seek(max(0, end - length))
    found = list(_DIGEST.finditer(file.read(length)))
    return start + found[-1].start(1) if found else None


def _digest_of(file: BinaryIO, place: int) -> bytes:
    """SHA-256 of the file as hex, with zeros in place of the digest at the offset `place`."""
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
