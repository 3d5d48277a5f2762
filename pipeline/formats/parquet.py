"""Read the images of Parquet files."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.formats.members import open_member
from pipeline.formats.rows import (
    MAX_ENCODED_BYTES,
    Names,
    failed_image,
    image_row,
    open_version,
    row_of_rest,
    too_large_text,
)
from pipeline.isolation.child import Row
from pipeline.schema import MISSING_BYTES, TOO_LARGE, Shard
from pipeline.storage.urls import identity

PARQUET_ROWS = 16  # rows decoded together, so that a row group of large images does not fill memory
PARQUET_BUFFER = 1 << 20  # bytes of a column that are read at once
LONGEST_ID = 4096  # characters; a longer value of an id column names no image
ID_COLUMNS = ("image_id", "id", "__key__", "key")


def read_parquet(shard: Shard) -> Iterator[Row]:
    """Rows of a Parquet file's image column. The id is from the id column, or the row's number."""
    member = shard.members[0]
    count = 0
    names = Names()
    try:
        fs, path = open_member(member, "shard")
        with open_version(fs, path, member) as file:
            for image_id, value in _rows_of_parquet(file):
                row_id = f"{identity(member.uri)}#{count}"
                name = names.unique(row_id if image_id is None else image_id, row_id)
                count += 1
                if isinstance(value, int):
                    yield failed_image(member, name, TOO_LARGE, too_large_text(value))
                elif value is None:
                    yield failed_image(member, name, MISSING_BYTES, "the image column is null")
                else:
                    yield image_row(member, name, value)
    except Exception as error:  # errors of Arrow and of the storage
        yield row_of_rest(member, count, error, "broken Parquet file", names)


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
