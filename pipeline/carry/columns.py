"""Which columns a run carries along, and how they travel between stages.

The rows of a stage have them in one column, a struct with a field for each. So a stage passes them
on without knowing them, and the schema of its rows says which they are. A run without them has the
schemas of `schema.py` as they are.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipeline.carry.types import name_of_type, type_named

CARRIED = "carried"  # the struct with the values
NOT_CARRIED = "not_carried"  # number of values of the image that could not be carried
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def sql_key(name: str) -> str:
    """What DuckDB knows a column by: to it A and a are the same, and Ä and ä are not."""
    return name.translate(_LOWER)


@dataclass(frozen=True)
class Column:
    """A column that is carried along."""

    name: str
    type: pa.DataType  # one of carry/types.py


@dataclass(frozen=True)
class Carry:
    """The columns that a run carries along, in their order. It is false if there are none."""

    columns: tuple[Column, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.columns)

    @property
    def struct(self) -> pa.DataType:
        """The type of the column CARRIED."""
        return pa.struct(self.fields())

    def fields(self) -> list[pa.Field]:
        """The columns as they are published."""
        return [pa.field(column.name, column.type) for column in self.columns]

    def as_document(self) -> dict[str, str]:
        """The names of the types by the names of the columns, for JSON."""
        return {column.name: name_of_type(column.type) for column in self.columns}


NO_CARRY = Carry()


def carry_of_document(document: Mapping[str, str]) -> Carry:
    """The inverse of `Carry.as_document`. Raises ValueError for a type that does not exist."""
    columns = []
    for name, named in document.items():
        kind = type_named(named)
        if kind is None:
            raise ValueError(f"{named!r} is no type of a carried column")
        columns.append(Column(name, kind))
    return Carry(tuple(columns))


def carry_of_struct(struct: pa.DataType) -> Carry:
    """The columns that a struct holds; the inverse of `Carry.struct`."""
    return Carry(tuple(Column(field.name, field.type) for field in struct))


def carry_of_rows(schema: pa.Schema) -> Carry:
    """The columns that rows with this schema carry along."""
    return carry_of_struct(schema.field(CARRIED).type) if CARRIED in schema.names else NO_CARRY


def with_carried(schema: pa.Schema, carry: Carry) -> pa.Schema:
    """The schema of the rows of a stage in a run that carries columns along."""
    if not carry:
        return schema
    own = [pa.field(CARRIED, carry.struct), pa.field(NOT_CARRIED, pa.int32())]
    return pa.schema([*schema, *own])


def with_any_carried(schema: pa.Schema) -> pa.Schema:
    """The names that a file may have, whatever the types of the carried values."""
    return pa.schema([*schema, (CARRIED, pa.null()), (NOT_CARRIED, pa.null())])


def carried_part(table: pa.Table) -> pa.Table:
    """The columns of a table that `with_carried` adds; none if it carries nothing."""
    return table.select([name for name in (CARRIED, NOT_CARRIED) if name in table.column_names])


def own_part(table: pa.Table) -> pa.Table:
    """A table without the columns that `with_carried` adds."""
    return table.drop_columns(carried_part(table).column_names)


def joined(own: pa.Table, carried: pa.Table) -> pa.Table:
    """A table and its carried part, which has as many rows, as one table."""
    for field, values in zip(carried.schema, carried.columns, strict=True):
        own = own.append_column(field, values)
    return own
