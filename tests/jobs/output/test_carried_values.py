"""No carried value changes where runs have other types: not in the views, and not by `compact`."""

import datetime as dt
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.compact import compact
from jobs.output.carried import carried_as_sql, columns_that_become_text, common_carry
from jobs.output.manifest import Manifest
from pipeline.carry.columns import Carry, Column
from pipeline.carry.types import name_of_type, names_of_types, type_named
from tests.jobs.output.test_carried import NIGHTS, write_lake
from tests.support.carrying import publish_run
from tests.support.tables import rows

SCALARS = [name for name in names_of_types().replace(",", "").split() if type_named(name)]
SCALARS = [name for name in SCALARS if not name.endswith("[]")]
ALL = [*SCALARS, *(f"{name}[]" for name in SCALARS)]
LARGE = 9007199254740993  # 2^53 + 1, which float64 does not hold
TIMES = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))


def values(name: str) -> st.SearchStrategy[Any]:
    """Values of a type of carried columns, as Python has them."""
    if name.endswith("[]"):
        return st.lists(st.none() | values(name.removesuffix("[]")), max_size=3)
    if "int" in name:
        bits, low = int(name.partition("int")[2]), 0 if name.startswith("u") else -1
        high = (1 << bits) if not low else (1 << (bits - 1))
        return st.integers(low * high, high - 1)
    return {
        "string": st.text(max_size=9),
        "bool": st.booleans(),
        "float32": st.floats(width=32, allow_nan=False),
        "float64": st.floats(allow_nan=False),
        "date": st.dates(dt.date(1, 1, 1), dt.date(9999, 12, 31)),
        "time": st.times(),
        "datetime": TIMES,
        "timestamp": TIMES.map(lambda time: time.replace(tzinfo=dt.UTC)),
    }[name]


def run_with(name: str) -> Manifest:
    return {"carried": {"c": name}, "files": []}  # type: ignore[typeddict-item]


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def in_sql(
    connection: duckdb.DuckDBPyConnection, values: pa.Array, own: pa.DataType, wanted: pa.DataType
) -> pa.Array:
    """Values of the type `own` as the views have them, in the type `wanted`."""
    (sql,) = carried_as_sql(Carry((Column("c", own),)), Carry((Column("c", wanted),)))
    connection.register("files", pa.table({"c": values}))
    return connection.sql(f"SELECT {sql} FROM files").to_arrow_table()["c"].combine_chunks()


@given(st.data())
def test_no_value_changes_where_two_types_meet(
    connection: duckdb.DuckDBPyConnection, data: st.DataObject
) -> None:
    first, second = data.draw(st.tuples(*[st.sampled_from(ALL)] * 2))
    (column,) = common_carry([run_with(first), run_with(second)]).columns
    own = type_named(first)
    assert own is not None
    array = pa.array(data.draw(st.lists(values(first), max_size=5)), own)
    found = in_sql(connection, array, own, column.type)
    back = in_sql(connection, found, column.type, own)  # a text says all that the value was
    assert back.cast(own).to_pylist() == array.to_pylist()


@pytest.mark.parametrize(("first", "second"), [*itertools.product(SCALARS, repeat=2)])
def test_types_meet_in_one_that_holds_both(first: str, second: str) -> None:
    """The order makes no difference; numbers stay numbers where one type holds both."""
    runs = [run_with(first), run_with(second)]
    names = {name_of_type(common_carry(some).columns[0].type) for some in (runs, runs[::-1])}
    (name,) = names
    if "int64" in first + second and "float" in first + second:
        assert name == "string"
    elif {"int8", "float32"} == {first, second} or {"uint32", "float64"} == {first, second}:
        assert name == "float64"


def test_columns_that_become_text_are_told() -> None:
    runs = [run_with("int32"), run_with("int64")]
    told = [
        [earlier for _, earlier in columns_that_become_text(some, Carry((Column("C", kind),)))]
        for some, kind in (
            (runs, pa.float64()),
            (runs[:1], pa.float64()),
            (runs, pa.string()),
            ([], pa.string()),
            ([run_with("string")], pa.float64()),
            ([run_with("string")], pa.string()),
        )
    ]
    assert told == [["int64"], [], ["int64"], [], ["string"], []]


@pytest.mark.parametrize(("first", "second"), [("Ä", "ä"), ("straße", "strasse"), ("Ab", "aB")])
def test_names_that_are_alike_are_read_and_compacted(
    first: str, second: str, tmp_path: Path
) -> None:
    """DuckDB makes no difference between A and a alone."""
    lake, output = tmp_path / "lake", tmp_path / "out"
    write_lake(lake, "a.parquet", **{first: ["x"]})
    publish_run(lake, output, first, NIGHTS[0])
    (lake / "a.parquet").unlink()
    write_lake(lake, "b.parquet", **{second: ["y"]})
    publish_run(lake, output, second, NIGHTS[1])
    query = f'SELECT "{first}", "{second}" FROM latest_images ORDER BY uri'
    wanted = [("x", "x"), ("y", "y")] if first.isascii() else [("x", None), (None, "y")]
    assert rows(output, query) == wanted
    compact(str(output))
    assert rows(output, query) == wanted


def test_large_integers_stay_beside_floats(tmp_path: Path) -> None:
    lake, output = tmp_path / "lake", tmp_path / "out"
    write_lake(lake, "a.parquet", n=pa.array([LARGE, 7], pa.int64()), l=[[LARGE], None])
    publish_run(lake, output, "n,l", NIGHTS[0])
    (lake / "a.parquet").unlink()
    write_lake(lake, "b.parquet", n=pa.array([5.5, None]), l=[[0.5], []])
    publish_run(lake, output, "n,l", NIGHTS[1])
    query = "SELECT n, l FROM latest_images ORDER BY run, index_in_shard"
    wanted = [(str(LARGE), [str(LARGE)]), ("7", None), ("5.5", ["0.5"]), (None, [])]
    assert rows(output, query) == wanted
    (result,) = compact(str(output))
    assert rows(output, query.replace("run, index_in_shard", "uri, index_in_shard")) == wanted
    (file,) = (output / "images" / f"run={result.run_id}").iterdir()
    assert pq.read_table(file, columns=["n"], partitioning=None).to_pydict() == {
        "n": [str(LARGE), "7", "5.5", None]
    }
