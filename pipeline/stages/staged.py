"""Read which images the blocks under `_staging` hold.

A rerun skips these images. Publishing compares them with the plan.
"""

import io
import logging
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.carry.columns import carried_part, with_any_carried
from pipeline.plan.remaining import Numbers, Staged, merge_ranges
from pipeline.schema import DETECTED, RANGES
from pipeline.storage.errors import DamagedFile
from pipeline.storage.files import join, list_files, open_location, read_object
from pipeline.storage.parquet import completed, read_tables
from pipeline.storage.retries import retry
from pipeline.storage.urls import mask

log = logging.getLogger(__name__)

READ_AT_ONCE = 16  # files that are fetched concurrently; latency is the limit


def read_staging(staging: str) -> Staged:
    """Read which images the blocks under the URL `staging` hold, and remove damaged blocks.

    The result is empty if the folder does not exist.
    """
    return merge_ranges(
        remove_damaged_blocks(staging, [ranges_of_files(staging, list_staged_files(staging))])
    )


def list_staged_files(staging: str) -> list[str]:
    """The names of the staged files under the URL `staging`, sorted."""
    fs, path = open_location(staging, "staging")
    names = (name.rsplit("/", 1)[-1] for name in list_files(fs, path))
    return sorted(name for name in names if name.startswith("block-"))


_READABLE = with_any_carried(DETECTED)


def read_staged_block(
    staging: str, name: str, columns: Sequence[str] = _READABLE.names
) -> pa.Table:
    """Columns of a block under the URL `staging`; null in those that versions before 0.2 lacked.

    Raises DamagedFile if any byte is damaged.
    """
    url = join(staging, name)
    file = io.BytesIO(read_object(*open_location(url, "staging")))
    own = pa.schema([DETECTED.field(column) for column in columns if column in DETECTED.names])
    tables = [
        completed(table, pa.schema([*own, *carried_part(table).schema]))
        for table in read_tables(file, url, _READABLE, columns)
    ]
    return pa.concat_tables(tables or [own.empty_table()])


def remove_staged_block(staging: str, name: str) -> None:
    """Delete a block under the URL `staging`. It is no error if the block does not exist."""
    fs, path = open_location(join(staging, name), "staging")
    with suppress(FileNotFoundError):
        retry(fs.rm_file, path)


def remove_blocks_with(staging: str, texts: Set[str]) -> int:
    """Delete the blocks under the URL `staging` whose column `canaries` holds one of `texts`.

    Every block is read. Returns the number of deleted blocks.
    """

    def remove(name: str) -> bool:
        column = read_staged_block(staging, name, ["canaries"])["canaries"]
        if texts.isdisjoint(column.to_pylist()):
            return False
        remove_staged_block(staging, name)
        return True

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        return sum(pool.map(remove, list_staged_files(staging)))


def remove_damaged_blocks(staging: str, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Delete the blocks that tables of schema RANGES report as damaged.

    Yields the tables without the rows of these blocks.
    """
    for table in tables:
        whole = pc.is_valid(table["shard"])
        for name in table.filter(pc.invert(whole))["file"].to_pylist():
            remove_staged_block(staging, name)
            log.warning(
                "%s was damaged and is removed: its images are computed again",
                mask(join(staging, name)),
            )
        yield table.filter(whole)


_COLUMNS = ["shard", "index_in_shard", "shard_size", "status", "canaries"]
_ROWS = pa.schema([*(DETECTED.field(name) for name in _COLUMNS), ("boxes", pa.int64())])


def ranges_of_files(staging: str, files: Sequence[str]) -> pa.Table:
    """RANGES of the given files under the URL `staging`. Each file is read once and completely."""

    def rows_of(name: str) -> pa.Table | None:
        try:
            rows = read_staged_block(staging, name, _ROWS.names)
        except DamagedFile:
            return None
        boxes = pc.fill_null(pc.list_value_length(rows["boxes"]), 0).cast(pa.int64())
        return pa.table([*(rows[column] for column in _COLUMNS), boxes], schema=_ROWS)

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        read = list(zip(files, pool.map(rows_of, files), strict=True))
    damaged = [{"file": name, "start": 0, "stop": 0} for name, table in read if table is None]
    ranges = _ranges_of_rows([(name, table) for name, table in read if table is not None])
    return pa.concat_tables([ranges, pa.Table.from_pylist(damaged, schema=RANGES)])


def _ranges_of_rows(blocks: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    """RANGES of files, from pairs of a file's name and its rows, of schema _ROWS."""
    files, tables = [name for name, _ in blocks], [table for _, table in blocks]
    file = np.repeat(np.arange(len(files)), [len(table) for table in tables])
    rows = pa.concat_tables([_ROWS.empty_table(), *tables]).combine_chunks()
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
        pa.array(np.add.reduceat(rows["boxes"].to_numpy()[order], starts)),
        _canaries_of_ranges(rows["canaries"], order, starts),
    ]
    return pa.table(columns, schema=RANGES)


def _canaries_of_ranges(column: pa.ChunkedArray, order: Numbers, starts: Numbers) -> pa.Array:
    """The texts of `canaries`, each at one range that holds it.

    Many blocks of a detector have equal texts, which would fill the memory of the driver.
    """
    by_range: list[list[str] | None] = [None] * len(starts)
    rows = np.flatnonzero(pc.is_valid(column).to_numpy())
    if len(rows):
        places = np.searchsorted(starts, np.argsort(order)[rows], "right") - 1
        texts = column.take(pa.array(rows)).to_pylist()
        for text, place in dict(zip(texts, places.tolist(), strict=True)).items():
            by_range[place] = [*(by_range[place] or ()), text]
    return pa.array(by_range, pa.list_(pa.string()))
