"""Read the images of Parquet files."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.carry.arrow_types import is_list
from pipeline.formats.image_names import HEAD_BYTES, looks_like_image
from pipeline.formats.members import open_member
from pipeline.formats.parquet_batches import column_batches
from pipeline.formats.parquet_carried import carried_rows
from pipeline.formats.parquet_columns import Columns, Leaf, NoImageColumn, size_of_leaf
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
from pipeline.schema import EMPTY_SHARD, MISSING_BYTES, TOO_LARGE, Member, Shard
from pipeline.storage.access import use_input_access
from pipeline.storage.files import open_object
from pipeline.storage.urls import identity

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
PARQUET_BUFFER = 1 << 20  # bytes of a column that are read at once
SIGNATURE_BYTES = 28  # behind a footer in plain text, where columns are encrypted
LONGEST_ID = 4096  # characters; a longer value of an id column names no image
VALUES_LOOKED_AT, ROWS_LOOKED_AT = 16, 1024  # of a column that may hold images

# The values of one row: one, or those of a list.
_Values = Iterator[pa.Scalar]


def read_parquet(shard: Shard) -> Iterator[Row]:
    """One row for each image of the image column.

    The id of an image is the value of the id column, or `<uri>#<number of the row>`. In a column of
    lists, `-<position in the list>` is behind it. A row without an image is a failed image.
    """
    member = shard.members[0]
    count = 0
    names = Names()
    try:
        fs, path = open_member(member, "shard")
        with open_version(fs, path, member) as file:
            for row in _rows_of_file(file, shard, names):
                count += 1
                yield row
    except NoImageColumn as error:
        yield failed_image(member, identity(member.uri), EMPTY_SHARD, str(error))
    except Exception as error:  # errors of Arrow and of the storage
        yield row_of_rest(member, count, error, "broken Parquet file", names)


def name_image_column(member: Member, named: str | None, access: str | None) -> Iterator[Row]:
    """Yield one row: the name of the `column` that the images of a file are read from.

    It reads pages, so it is for a child process. Raises the errors of Arrow and of the storage.
    """
    use_input_access(access)
    with open_object(*open_member(member, "shard")) as file:
        parquet = open_parquet(file)
        yield {"column": _image_leaf(parquet, Columns(parquet), named).name}


def _rows_of_file(file: BinaryIO, shard: Shard, names: Names) -> Iterator[Row]:
    """The rows of all images. Raises NoImageColumn before the first if there is no such column."""
    member = shard.members[0]
    parquet = open_parquet(file)
    open_again = partial(open_parquet, file, parquet.metadata)
    columns = Columns(parquet)
    image, ids = _image_leaf(parquet, columns, shard.image_column), columns.id_leaf(shard.id_column)
    address = None if image.address is None else replace(image, index=image.address)
    rows = zip(
        *(
            repeat(iter(())) if leaf is None else _values_of_rows(open_again(), leaf)
            for leaf in (image, ids, address)
        ),
        strict=False,
    )
    carried = carried_rows(open_again, columns, shard.carry)
    for number, ((images, row_ids, addresses), more) in enumerate(zip(rows, carried, strict=False)):
        row_name = f"{identity(member.uri)}#{number}"
        given = None if ids is None else _id(next(row_ids), ids)
        empty = True
        for position, value in enumerate(images):
            empty = False
            end = f"-{position}" if image.is_listed else ""
            name = names.unique((given or row_name) + end, row_name + end)
            yield {**_row_of_image(member, name, value, image, next(addresses, None)), **more}
        if empty:
            name = names.unique(given or row_name, row_name)
            reason = f"the list of images in column {image.name} is empty"
            yield {**failed_image(member, name, MISSING_BYTES, reason), **more}


def open_parquet(file: BinaryIO, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A reader of an open file, whose footer is `metadata` if it was read before.

    It reads a dictionary of bytes as plain bytes, so that a batch does not hold the whole
    dictionary. Pages that have a checksum are compared with it. Raises ArrowInvalid if columns are
    encrypted: Arrow would end the process.
    """
    parquet = pq.ParquetFile(
        file,
        metadata=metadata,
        buffer_size=PARQUET_BUFFER,
        pre_buffer=False,
        binary_type=pa.large_binary(),
        page_checksum_verification=True,
    )
    if metadata is None:
        signed = footer_bytes(file) - parquet.metadata.serialized_size
        if signed == SIGNATURE_BYTES:
            raise pa.ArrowInvalid("its columns are encrypted, and there are no keys for them here")
    return parquet


def footer_bytes(file: BinaryIO) -> int:
    """The size of the footer, as the end of a Parquet file gives it."""
    file.seek(-8, os.SEEK_END)
    return int.from_bytes(file.read(4), "little")


def _values_of_rows(parquet: pq.ParquetFile, leaf: Leaf) -> Iterator[_Values]:
    """The values of each row of a file, which must be consumed before the next row."""
    for array in column_batches(parquet, leaf.index):
        yield from _values_of_array(array)


def _values_of_array(array: pa.Array) -> Iterator[_Values]:
    values, parents = _flatten(array)
    start = 0
    for row in range(len(array)):
        stop = start
        while stop < len(parents) and parents[stop] == row:
            stop += 1
        yield map(values.__getitem__, range(start, stop))
        start = stop


def _row_of_image(
    member: Member, name: str, value: pa.Scalar, image: Leaf, address: pa.Scalar | None
) -> Row:
    """The row of a value of the image column. A value above MAX_ENCODED_BYTES is not copied."""
    encoded = value.as_buffer() if value.is_valid else None
    if encoded is None:
        reason = f"the image column {image.name} is null"
        if address is not None and (text := _text(address, image)):
            reason += f": the file holds the image's path alone, and it is not opened: {text}"
        return failed_image(member, name, MISSING_BYTES, reason)
    if encoded.size > MAX_ENCODED_BYTES:
        return failed_image(member, name, TOO_LARGE, too_large_text(encoded.size))
    return image_row(member, name, encoded.to_pybytes())


def _image_leaf(parquet: pq.ParquetFile, columns: Columns, named: str | None) -> Leaf:
    """The column of images: the first candidate whose values look like images.

    If there is none, it is the first whose name says so, and its rows will be undecodable. Raises
    NoImageColumn if there is none either.
    """
    candidates = columns.image_candidates(named, partial(size_of_leaf, parquet.metadata))
    if len(candidates) == 1 and (named is not None or columns.is_called_image(candidates[0])):
        return candidates[0]
    some: list[Leaf] = []  # a part of their values look like images
    for leaf in candidates:
        heads = _first_heads(parquet, leaf)
        images = sum(map(looks_like_image, heads))
        if images and 2 * images >= len(heads):
            return leaf
        some += [leaf] if images else []
    called = [leaf for leaf in candidates if named is not None or columns.is_called_image(leaf)]
    for leaf in (*some, *called):
        return leaf
    tried = ", ".join(leaf.name for leaf in candidates)
    raise NoImageColumn(
        f"no column of images: no value of {tried} starts like an image. If one of them holds "
        "images all the same, name it with --image-column"
    )


def _first_heads(parquet: pq.ParquetFile, leaf: Leaf) -> list[bytes]:
    """The first bytes of the first values of a column that are not null."""
    rows = islice(_values_of_rows(parquet, leaf), ROWS_LOOKED_AT)
    values = (value for value in chain.from_iterable(rows) if value.is_valid)
    return [
        value.as_buffer()[:HEAD_BYTES].to_pybytes() for value in islice(values, VALUES_LOOKED_AT)
    ]


def _flatten(values: pa.Array) -> tuple[pa.Array, list[int]]:
    """The values of a leaf without the structs and lists around them, and the row of each.

    A null struct is a null value. A list that is null or empty has no value.
    """
    rows = pa.array(range(len(values)), pa.int64())
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        elif pa.types.is_struct(values.type):
            values = pc.struct_field(values, [0])
        elif pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        elif is_list(values.type):
            rows = rows.take(pc.list_parent_indices(values))
            values = pc.list_flatten(values)
        else:
            return values, rows.to_pylist()


def _id(value: pa.Scalar, leaf: Leaf) -> str | None:
    """The id in a column. None if it is null, empty, or too long to be a name."""
    text = _text(value, leaf)
    return identity(text) if text else None


def _text(value: pa.Scalar, leaf: Leaf) -> str | None:
    """A value as text, with bytes that are not UTF-8 escaped (`\\xe9`). None if it is too long."""
    if not value.is_valid:
        return None
    if pa.types.is_integer(value.type):
        return str(value.as_py())
    data = value.as_buffer()
    if isinstance(leaf.type, pa.UuidType):
        return str(uuid.UUID(bytes=data.to_pybytes()))
    if data.size > 4 * LONGEST_ID:
        return None
    text = data.to_pybytes().decode("utf-8", "backslashreplace")
    return text if len(text) <= LONGEST_ID else None
