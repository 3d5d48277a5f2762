"""Parquet files for tests of their reader, and the rows that it makes of them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.formats.read import read_rows
from pipeline.schema import Member, Shard
from pipeline.storage.files import object_info, open_location
from pipeline.storage.versions import etag_of


def shard_of(path: Path, image_column: str | None = None, id_column: str | None = None) -> Shard:
    info = object_info(*open_location(str(path), "INPUT"))
    member = Member(f"file://{path}", etag_of(info), path.stat().st_size)
    return Shard(member.uri, "parquet", (member,), None, image_column, id_column)


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def rows_of(table: pa.Table, folder: Path, named: dict[str, str] | None = None) -> list[Any]:
    """Write a table, and return the (id, status, bytes) of its images, without the address."""
    path = write(folder / "p.parquet", table)
    rows = list(read_rows(shard_of(path, **(named or {})), 0))
    prefix = f"file://{path}"
    return [(r["image_id"].removeprefix(prefix), r["status"], r["encoded"]) for r in rows]


def error_of(table: pa.Table, folder: Path, **named: str) -> str:
    """The error of the one row that stands for the file."""
    (row,) = read_rows(shard_of(write(folder / "p.parquet", table), **named), 0)
    assert row["status"] == "empty_shard"
    return str(row["error"])
