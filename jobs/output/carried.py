"""The carried columns of several runs as one set of columns: of the views, and of `compact`."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from jobs.output.manifest import Manifest, carry_of_run
from pipeline.carry.columns import Carry, Column, sql_key
from pipeline.carry.types import LIST, exact_common_type, list_of, name_of_type

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

    Where two runs have numbers of different types, the column has a type that holds all numbers of
    both as they are. Where there is no such type, as for int64 and float64, it is text. Names
    differ by more than the case of ASCII letters, as SQL makes no difference there.
    """
    return _common(map(carry_of_run, runs))


def columns_that_become_text(runs: Iterable[Manifest], new: Carry) -> Iterator[tuple[Column, str]]:
    """The columns of a new run that no type but text holds together with those of earlier `runs`.

    Those that are text in the new run too, and were before, are left out. Each comes with the name
    of the type that it has in these runs.
    """
    before = common_carry(runs)
    types = {sql_key(column.name): column.type for column in before.columns}
    after = {sql_key(column.name): column.type for column in _common((before, new)).columns}
    for column in new.columns:
        earlier, later = (each.get(sql_key(column.name)) for each in (types, after))
        if earlier is not None and _is_text(later) and not (earlier == later == column.type):
            yield column, name_of_type(earlier)


def _is_text(kind: pa.DataType | None) -> bool:
    return kind in (pa.string(), list_of(pa.string()))


def _common(carries: Iterable[Carry]) -> Carry:
    found: dict[str, Column] = {}
    for carry in carries:
        for column in carry.columns:
            key = sql_key(column.name)
            before = found.setdefault(key, column)
            kind = exact_common_type(before.type, column.type) or pa.string()
            found[key] = Column(before.name, kind)
    return Carry(tuple(found.values()))


def carried_as_sql(own: Carry, wanted: Carry) -> list[str]:
    """The columns `wanted` as SQL over files that have the columns `own`; others are NULL."""
    types = {sql_key(column.name): column.type for column in own.columns}
    return [_as_sql(column, types.get(sql_key(column.name))) for column in wanted.columns]


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
