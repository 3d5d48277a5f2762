"""The values of one column of a Parquet file, some rows at a time."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.formats.rows import MAX_ENCODED_BYTES

PARQUET_ROWS = 16  # rows decoded together, so that a row group of large images does not fill memory


def column_batches(parquet: pq.ParquetFile, index: int) -> Iterator[pa.Array]:
    """The values of the leaf `index` of a file, with the lists and structs around them.

    Arrow reads Parquet by pages. Its values refer to the page until they are copied. Each column
    needs its own reader: a reader has one size of batches, which the last iteration sets.
    """
    for group in range(parquet.num_row_groups):
        rows = _rows_at_once(parquet.metadata.row_group(group).column(index))
        # The method of ParquetFile takes names. They may contain dots, and name two columns.
        for batch in parquet.reader.iter_batches(
            rows, row_groups=[group], column_indices=[index], use_threads=False
        ):
            yield batch.column(0)


def _rows_at_once(column: pq.ColumnChunkMetaData) -> int:
    """The number of rows that are decoded together, so that they do not fill memory.

    A column that may hold an image above MAX_ENCODED_BYTES is decoded row by row. Values of a
    dictionary count once in the size of the column, but each time in memory.
    """
    size = max(column.total_uncompressed_size, 1)
    if not column.has_dictionary_page:
        return PARQUET_ROWS if size <= MAX_ENCODED_BYTES else 1
    return max(1, min(PARQUET_ROWS, MAX_ENCODED_BYTES // size))
