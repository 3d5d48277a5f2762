"""stage: DETECTED blocks -> one Parquet file each under `_staging`, and a receipt for the driver.

A staged file is named by the images it holds, so that a task that is run again overwrites its own
work. What is staged is done: a rerun reads it back and leaves those images out.
"""

import hashlib
import io
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.urls import mask
from pipeline import retries
from pipeline.errors import DamagedFile
from pipeline.parquet import read_tables, write_parquet
from pipeline.retries import retried
from pipeline.schema import DETECTED, OK, Receipt
from pipeline.storage import find, join, open_location, read_object, write_whole

log = logging.getLogger(__name__)

READ_AT_ONCE = 16  # files fetched together: latency limits them


def block_name(table: pa.Table) -> str:
    """A name that depends on the set of images alone.

    An image is its place in its shard: ids that come from a Parquet column may be those of another
    file as well.
    """
    places = zip(table["shard"].to_pylist(), table["index_in_shard"].to_pylist(), strict=True)
    digest = hashlib.sha256("\0".join(f"{s}\0{i}" for s, i in sorted(places)).encode())
    return f"block-{digest.hexdigest()[:24]}.parquet"


def stage(table: pa.Table, staging: str) -> Receipt:
    """Write one block under the URL `staging`, whole or not at all."""
    began, before = time.perf_counter(), retries.repeated
    table = table.select(DETECTED.names).cast(DETECTED)
    name = block_name(table)
    buffer = io.BytesIO()
    write_parquet(buffer, DETECTED, [table])
    fs, path = open_location(join(staging, name), "staging")
    write_whole(fs, path, buffer.getvalue())
    statuses = Counter(table["status"].to_pylist())
    images = statuses.total()
    statuses.pop(OK, None)
    return Receipt(
        file=name,
        shards=tuple(sorted(set(table["shard"].to_pylist()))),
        images=images,
        detections=sum(pc.list_value_length(table["boxes"]).to_pylist()),
        failed=dict(statuses),
        encoded_bytes=pc.sum(table["encoded_bytes"]).as_py() or 0,
        read_seconds=pc.sum(table["read_seconds"]).as_py() or 0.0,
        prepare_seconds=pc.sum(table["prepare_seconds"]).as_py() or 0.0,
        detect_seconds=pc.sum(table["detect_seconds"]).as_py() or 0.0,
        retries=(pc.sum(table["retries"]).as_py() or 0) + retries.repeated - before,
        batch_limit=pc.min(table["batch_limit"]).as_py(),
        stage_seconds=time.perf_counter() - began,
        finished_at=time.time(),
    )


# What staged files hold: positions of a shard that follow on one another in one file and have one
# status, from `start` to before `stop`; `shard_size` where one of them tells it. A file that is
# damaged has one row, without a shard.
RANGES = pa.schema(
    [
        ("shard", pa.string()),
        ("file", pa.string()),
        ("status", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("shard_size", pa.int64()),
    ]
)
Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Staged:
    """What is under a staging folder: each image once, in ranges sorted by shard and position."""

    shards: pa.Array  # names, sorted
    files: pa.Array  # names, sorted
    found: Numbers  # images of each shard
    sizes: Numbers  # images that each shard has in all; -1 where its end was not reached
    status: pa.Array  # of each range, as the next
    shard: Numbers  # place in `shards`
    file: Numbers  # place in `files`: the first that holds the images
    start: Numbers
    stop: Numbers

    @property
    def images(self) -> int:
        return int(self.found.sum())

    def counts(self) -> dict[str, int]:
        """Images by status."""
        table = pa.table({"status": self.status, "images": self.stop - self.start})
        rows = table.group_by("status").aggregate([("images", "sum")]).to_pylist()
        return {row["status"]: row["images_sum"] for row in rows}

    def places(self, shards: pa.Array) -> Numbers:
        """Where each shard is in `shards`; -1 where nothing of it is staged."""
        found: Numbers = pc.fill_null(pc.index_in(shards, self.shards), -1).to_numpy()
        return found.astype(np.int64)

    def ranges(self, first: int, last: int) -> slice:
        """Which ranges are of the shards at places from `first` to `last`."""
        left = np.searchsorted(self.shard, first)
        return slice(int(left), int(np.searchsorted(self.shard, last, "right")))

    def done(self, place: int) -> list[tuple[int, int]]:
        """What of the shard at a place is staged, from `start` to before `stop`."""
        of_shard = self.ranges(place, place)
        bounds = self.start[of_shard].tolist(), self.stop[of_shard].tolist()
        return list(zip(*bounds, strict=True))


def staged(staging: str) -> Staged:
    """Read back what blocks under the URL `staging` hold; nothing where the folder is absent.

    Blocks that are damaged are removed.
    """
    return merged(remove_damaged(staging, [ranges_in(staging, staged_files(staging))]))


def staged_files(staging: str) -> list[str]:
    """Names of the blocks' files under the URL `staging`, sorted."""
    fs, path = open_location(staging, "staging")
    names = (name.rsplit("/", 1)[-1] for name in find(fs, path))
    return sorted(name for name in names if name.startswith("block-"))


def read_staged(staging: str, name: str, columns: Sequence[str] = DETECTED.names) -> pa.Table:
    """Columns of a block under the URL `staging`. DamagedFile where a byte of it is damaged."""
    url = join(staging, name)
    file = io.BytesIO(read_object(*open_location(url, "staging")))
    schema = pa.schema([DETECTED.field(column) for column in columns])
    tables = [
        table if table.column_names == schema.names else _with_nulls(table, schema)
        for table in read_tables(file, url, DETECTED, columns)
    ]
    return pa.concat_tables([schema.empty_table(), *tables])


def _with_nulls(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table of a version before 0.2, with nulls for the columns that it did not have."""
    columns = [
        table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def remove_staged(staging: str, name: str) -> None:
    """Delete a block under the URL `staging`, unless it is gone."""
    fs, path = open_location(join(staging, name), "staging")
    with suppress(FileNotFoundError):
        retried(fs.rm_file, path)


def remove_damaged(staging: str, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of schema RANGES, after the removal of blocks that are damaged by their word."""
    for table in tables:
        whole = pc.is_valid(table["shard"])
        for name in table.filter(pc.invert(whole))["file"].to_pylist():
            remove_staged(staging, name)
            log.warning(
                "%s was damaged and is removed: its images are computed again",
                mask(join(staging, name)),
            )
        yield table.filter(whole)


_COLUMNS = ["shard", "index_in_shard", "shard_size", "status"]


def ranges_in(staging: str, files: Sequence[str]) -> pa.Table:
    """RANGES of some files under the URL `staging`, each read once and to its last byte."""

    def rows_of(name: str) -> pa.Table | None:
        try:
            return read_staged(staging, name, _COLUMNS)
        except DamagedFile:
            return None

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        read = list(zip(files, pool.map(rows_of, files), strict=True))
    damaged = [{"file": name, "start": 0, "stop": 0} for name, table in read if table is None]
    ranges = _ranges([(name, table) for name, table in read if table is not None])
    return pa.concat_tables([ranges, pa.Table.from_pylist(damaged, schema=RANGES)])


def _ranges(blocks: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    """RANGES of files by their names and rows."""
    files, tables = [name for name, _ in blocks], [table for _, table in blocks]
    file = np.repeat(np.arange(len(files)), [len(table) for table in tables])
    empty = pa.schema([DETECTED.field(name) for name in _COLUMNS]).empty_table()
    rows = pa.concat_tables([empty, *tables]).combine_chunks()
    if not len(rows):
        return RANGES.empty_table()
    index = rows["index_in_shard"].to_numpy()
    shard, status = (
        rows[name].combine_chunks().dictionary_encode().indices.to_numpy()
        for name in ("shard", "status")
    )
    order = np.lexsort((index, file, shard))
    same = np.ones(len(rows) - 1, bool)
    for column, step in ((shard, 0), (file, 0), (status, 0), (index, 1)):
        same &= np.diff(column[order]) == step
    starts = np.flatnonzero(np.append(True, ~same))
    first, last = order[starts], order[np.append(starts[1:], len(order)) - 1]
    sizes = np.maximum.reduceat(pc.fill_null(rows["shard_size"], -1).to_numpy()[order], starts)
    columns = [
        rows["shard"].take(pa.array(first)),
        pa.array(files, pa.string()).take(pa.array(file[first])),
        rows["status"].take(pa.array(first)),
        pa.array(index[first]),
        pa.array(index[last] + 1),
        pa.array(sizes, mask=sizes < 0),
    ]
    return pa.table(columns, schema=RANGES)


def merged(tables: Iterable[pa.Table]) -> Staged:
    """What tables of schema RANGES tell together.

    An image that several files hold, as after a task that ran again, counts in the first of them.
    """
    found = pa.concat_tables([RANGES.empty_table(), *tables]).combine_chunks()
    shards, files = (pc.unique(found[name]).sort() for name in ("shard", "file"))
    sizes = np.full(len(shards), -1)
    columns = [pc.index_in(found["shard"], shards), pc.index_in(found["file"], files)]
    columns += [found["start"], found["stop"], pa.array(np.arange(len(found)))]
    ranges = np.stack([column.to_numpy().astype(np.int64) for column in columns])
    np.maximum.at(sizes, ranges[0], pc.fill_null(found["shard_size"], -1).to_numpy())
    ranges = _in_order(ranges)
    shard, _, start, stop, _ = ranges
    again = (shard[1:] == shard[:-1]) & (start[1:] < stop[:-1])
    if again.any():
        twice = np.isin(shard, shard[1:][again])
        once = _each_once(ranges[:, twice])
        ranges = _in_order(np.concatenate([ranges[:, ~twice], once], axis=1))
    shard, file, start, stop, row = ranges
    counts = np.bincount(shard, stop - start, len(shards)).astype(np.int64)
    status = found["status"].take(pa.array(row))
    return Staged(shards, files, counts, sizes, status, shard, file, start, stop)


def _in_order(ranges: Numbers) -> Numbers:
    """(shard, file, start, stop, row) of each, sorted by shard and start, then by file."""
    return ranges[:, np.lexsort((ranges[1], ranges[2], ranges[0]))]


def _each_once(ranges: Numbers) -> Numbers:
    """Their positions one by one, of which each shard has each in its first file alone."""
    lengths = ranges[3] - ranges[2]
    each = np.repeat(ranges, lengths, axis=1)
    each[2] += np.arange(each.shape[1]) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    each[3] = each[2] + 1
    each = _in_order(each)
    new = (np.diff(each[0]) != 0) | (np.diff(each[2]) != 0)
    return each[:, np.append(True, new)]
