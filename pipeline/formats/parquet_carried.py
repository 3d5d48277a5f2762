"""The values that the rows of a Parquet file carry along. They never cost an image its labels."""

from collections.abc import Callable, Iterator
from itertools import repeat

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.carry.columns import CARRIED, NOT_CARRIED, Carry
from pipeline.carry.values import Plain, bounded, converted
from pipeline.formats.parquet_batches import column_batches
from pipeline.formats.parquet_columns import Columns
from pipeline.isolation.child import Row
from pipeline.storage.retries import is_from_store


def carried_rows(
    open_reader: Callable[[], pq.ParquetFile], columns: Columns, carry: Carry
) -> Iterator[Row]:
    """What to add to the rows of the images of each row of a file, without end.

    `open_reader` makes a reader of the file, of which each column needs one. A column that the file
    lacks is null. Where a column is damaged, its other values are not carried.
    """
    if not carry:
        yield from repeat({})
    by_column = [
        repeat((None, False)) if index is None else _values(open_reader(), index, column.type)
        for column in carry.columns
        for index in [columns.leaf_of(column.name)]
    ]
    for pairs in zip(*by_column, strict=True):
        names = (column.name for column in carry.columns)
        row, lost = bounded({name: value for name, (value, _) in zip(names, pairs, strict=True)})
        yield {CARRIED: row, NOT_CARRIED: lost + sum(is_lost for _, is_lost in pairs)}


def _values(parquet: pq.ParquetFile, index: int, kind: pa.DataType) -> Iterator[tuple[Plain, bool]]:
    """The value of each row, and whether it is not carried; the latter behind the last one."""
    try:
        for array in column_batches(parquet, index):
            yield from zip(*converted(array, kind), strict=True)
    except (pa.ArrowException, OSError) as error:  # Arrow raises OSError for some broken pages
        if is_from_store(error):
            raise
    yield from repeat((None, True))
