"""Plain values keep every bit on their way, and what cannot be one is not carried."""

import datetime as dt
import json
import math
from typing import Any

import pyarrow as pa
import pytest

from pipeline.carry.columns import Carry, Column, carry_of_document
from pipeline.carry.types import carried_type, common_type, list_of, name_of_type, type_named
from pipeline.carry.values import (
    MOST_ROW_BYTES,
    bounded,
    converted,
    plain_rows,
    plain_struct,
    plain_type,
    plain_values,
    struct_array,
    typed_array,
    values_of_json,
)
from pipeline.isolation.frames import RowReader

DAY = dt.datetime(1969, 12, 31, 23, 59, 59, 999999)
VALUES: dict[str, list[Any]] = {
    "string": ["", "é\0\n", None],
    "bool": [True, False, None],
    "int8": [-128, 127, None],
    "uint8": [0, 255, None],
    "int64": [-(2**63), 2**63 - 1, None],
    "uint64": [0, 2**64 - 1, None],
    "float32": [0.5, -0.0, math.inf, None],
    "float64": [1e308, -0.0, -math.inf, None],
    "date": [dt.date(1, 1, 1), dt.date(9999, 12, 31), None],
    "time": [dt.time(23, 59, 59, 999999), None],
    "datetime": [DAY, None],
    "timestamp": [DAY.replace(tzinfo=dt.UTC), None],
    "string[]": [[], ["a", None, "é"], None],
    "float64[]": [[1.5, None], None, []],
    "timestamp[]": [[DAY.replace(tzinfo=dt.UTC), None], None],
}


@pytest.mark.parametrize("name", VALUES)
def test_values_cross_json_with_all_bits(name: str) -> None:
    kind = type_named(name)
    assert kind is not None and name_of_type(kind) == name
    array = pa.array(VALUES[name], kind)
    for part in (array, pa.concat_arrays([array, array]).slice(1, len(array))):
        values = plain_values(part)
        assert typed_array(json.loads(json.dumps(values)), kind).equals(part)
        column = pa.schema([("value", plain_type(kind))])
        for value in values:  # the worker accepts them from its child
            frame = json.dumps({"value": value}).encode()
            assert RowReader(column).row(frame, memoryview(b"")) == {"value": value}


def test_values_that_are_no_numbers_cross_too() -> None:
    kind = list_of(pa.float32())
    values = plain_values(pa.array([[math.nan]], kind))
    assert math.isnan(typed_array(values, kind)[0].as_py()[0])


@pytest.mark.parametrize(
    "values", [{"n": 2**31}, {"n": True}, {"n": "1"}, {"s": 1}, {"l": ["a", 1]}, {"l": "a"},
               {"other": 1}, {"s": "\ud800"}, [], "x"]
)  # fmt: skip
def test_a_worker_refuses_values_of_other_types(values: Any) -> None:
    carry = carry_of_document({"n": "int32", "s": "string", "l": "string[]"})
    reader = RowReader(pa.schema([("carried", plain_struct(carry))]))
    with pytest.raises(Exception, match="another type or range"):
        reader.row(json.dumps({"carried": values}).encode(), memoryview(b""))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.large_string(), "string"),
        (pa.dictionary(pa.int8(), pa.large_string()), "string"),
        (pa.null(), "string"),
        (pa.float16(), "float32"),
        (pa.date64(), "date"),
        (pa.time32("s"), "time"),
        (pa.timestamp("ns"), "datetime"),
        (pa.timestamp("ms", "Europe/Berlin"), "timestamp"),
        (pa.large_list(pa.int32()), "int32[]"),
        (pa.list_(pa.string(), 2), "string[]"),
        (pa.binary(), None),
        (pa.decimal128(5, 2), None),
        (pa.struct([("a", pa.int8())]), None),
        (pa.list_(pa.list_(pa.int8())), None),
        (pa.map_(pa.string(), pa.string()), None),
        (pa.duration("s"), None),
    ],
)
def test_types_of_files_become_few(kind: pa.DataType, expected: str | None) -> None:
    found = carried_type(kind)
    assert (found and name_of_type(found)) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("int8", "int32", "int32"),
        ("int64", "float32", "float64"),
        ("float32", "float64", "float64"),
        ("uint8", "uint32", "uint32"),
        ("uint16", "int8", "int32"),
        ("uint8", "int64", "int64"),
        ("int8[]", "int16[]", "int16[]"),
        ("uint64", "int8", None),
        ("string", "int64", None),
        ("bool", "int8", None),
        ("datetime", "timestamp", None),
        ("string", "string[]", None),
    ],
)
def test_numbers_have_a_common_type(first: str, second: str, expected: str | None) -> None:
    kinds = [type_named(name) for name in (first, second)]
    assert kinds[0] and kinds[1]
    found = common_type(kinds[0], kinds[1])
    assert (found and name_of_type(found)) == expected


def test_values_of_files_become_those_of_another_type_one_by_one() -> None:
    kind = pa.int64()
    assert converted(pa.array(["7", None, "x", "-1"]), kind) == (
        [7, None, None, -1],
        [False, False, True, False],
    )
    assert converted(pa.array([b"a"]), pa.bool_()) == ([None], [True])
    times = pa.array([1_500], pa.timestamp("ns"))
    assert converted(times, pa.timestamp("us")) == ([1], [False])
    text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xe9a")]
    )
    assert converted(text, pa.string()) == (["\\xe9a"], [False])


def test_values_of_json_are_read_as_their_type_or_not_at_all() -> None:
    types = {"s": "string", "i": "int32", "u": "uint64", "f": "float64", "b": "bool",
             "t": "timestamp", "d": "date", "l": "int64[]"}  # fmt: skip
    carry = carry_of_document(types)

    def read(**given: Any) -> tuple[dict[str, Any], int]:
        values, lost = values_of_json(given, carry)
        row = struct_array([values], carry).to_pylist()[0]
        return {name: value for name, value in row.items() if value is not None}, lost

    day = dt.datetime(2021, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
    assert read(s={"a": ["é", 1]}, i=7, u=2**64 - 1, f=2, b=True, d="2021-02-03", l=[1, None]) == (
        {"s": '{"a": ["é", 1]}', "i": 7, "u": 2**64 - 1, "f": 2.0, "b": True,
         "d": dt.date(2021, 2, 3), "l": [1, None]},
        0,
    )  # fmt: skip
    for text in ("2021-02-03T04:05:06", "2021-02-03 04:05:06Z", "2021-02-03T05:05:06+01:00"):
        assert read(t=text) == ({"t": day}, 0)
    assert read(i="12", f="1e3", b="true", s=True) == (
        {"i": 12, "f": 1000.0, "b": True, "s": "true"},
        0,
    )
    assert read(s="\ud800") == ({"s": "\\ud800"}, 0)
    assert read(other=1, s=None) == ({}, 0)
    wrong: list[dict[str, Any]] = [{"i": 2**31}, {"i": 1.5}, {"i": True},
                {"b": 1}, {"u": -1}, {"f": "x"}, {"f": []},
                {"t": 5}, {"t": "soon"}, {"l": 1}, {"l": ["x"]}, {"i": {}}]  # fmt: skip
    for bad in wrong:
        assert read(**bad) == ({}, 1)


def test_large_values_are_not_carried() -> None:
    assert bounded({"a": "x" * 65_536, "b": "x" * 65_537, "c": None, "d": 1}) == (
        {"a": "x" * 65_536, "c": None, "d": 1},
        1,
    )
    assert bounded({"a": "é" * 40_000})[1] == 1
    assert bounded({"a": ["x" * 40_000] * 2})[1] == 1
    row, lost = bounded({str(n): "\1" * 60_000 for n in range(8)})  # each becomes 360 kB
    assert (len(row), lost) == (1, 7) and len(json.dumps(row)) < MOST_ROW_BYTES + 100


def test_a_time_that_no_day_has_is_null() -> None:
    """Arrow takes a file with such a time for damaged."""
    found = typed_array([0, 86_400_000_000, -1, None], pa.time64("us"))
    found.validate(full=True)
    assert found.to_pylist() == [dt.time(), None, None, None]


def test_rows_become_structs_and_come_back() -> None:
    carry = Carry((Column("a", pa.float64()), Column("b", list_of(pa.string()))))
    rows: list[dict[str, Any] | None] = [{"a": 1, "b": ["x"]}, None, {"b": []}]
    structs = struct_array(rows, carry)
    assert structs.null_count == 0 and structs.type == carry.struct
    expected = [{"a": 1, "b": ["x"]}, {"a": None, "b": None}, {"a": None, "b": []}]
    assert plain_rows(structs) == expected
    assert plain_rows(structs.slice(1)) == expected[1:]
