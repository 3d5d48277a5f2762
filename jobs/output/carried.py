"""The carried columns of several runs as one set of columns: of the views, and of `compact`."""

from collections.abc import Iterable

import pyarrow as pa

from jobs.output.manifest import Manifest, carry_of_run
from pipeline.carry.columns import Carry, Column
from pipeline.carry.types import LIST, common_type, name_of_type

_SQL = {
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "uint8": "UTINYINT",
    "uint16": "USMALLINT",
    "uint32": "UINTEGER",
    "uint64": "UBIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "date": "DATE",
    "time": "TIME",
    "datetime": "TIMESTAMP",
    "timestamp": "TIMESTAMPTZ",
}


def common_carry(runs: Iterable[Manifest]) -> Carry:
    """All carried columns of some runs, in the order in which they came.

    Where two runs have numbers of different types, the column holds both. Where they have other
    types, it is text. Names differ by more than their case, as SQL makes no difference there.
    """
    found: dict[str, Column] = {}
    for run in runs:
        for column in carry_of_run(run).columns:
            key = column.name.casefold()
            before = found.setdefault(key, column)
            kind = common_type(before.type, column.type) or pa.string()
            found[key] = Column(before.name, kind)
    return Carry(tuple(found.values()))


def carried_as_sql(own: Carry, wanted: Carry) -> list[str]:
    """The columns `wanted` as SQL over files that have the columns `own`; others are NULL."""
    types = {column.name.casefold(): column.type for column in own.columns}
    return [_as_sql(column, types.get(column.name.casefold())) for column in wanted.columns]


def quoted(name: str) -> str:
    """A name of a column in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _as_sql(column: Column, own: pa.DataType | None) -> str:
    name = quoted(column.name)
    if own == column.type:
        return name
    kind = name_of_type(column.type)
    in_sql = _SQL[kind.removesuffix(LIST)] + (LIST if kind.endswith(LIST) else "")
    return f"CAST({name if own is not None else 'NULL'} AS {in_sql}) AS {name}"
