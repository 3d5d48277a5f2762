"""What Parquet files say of their rows is carried along as pyarrow reads it."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.formats import parquet_batches
from pipeline.formats.parquet import read_parquet
from pipeline.formats.read import read_rows
from pipeline.plan.plan import plan_shards
from tests.support.carrying import carried_from
from tests.support.parquet_files import write
from tests.support.samples import jpeg

PHOTO = jpeg(1)
ROWS = 40


def table(rows: int = ROWS) -> pa.Table:
    """A table with columns of many types; every fifth value is null."""

    def column(values: list[Any], kind: pa.DataType) -> pa.Array:
        return pa.array([None if n % 5 == 4 else one for n, one in enumerate(values)], kind)

    numbers = list(range(rows))
    times = [dt.datetime(2020, 1, 1) + dt.timedelta(hours=n, microseconds=n) for n in numbers]
    return pa.table(
        {
            "image": [PHOTO] * rows,
            "text": column([f"é{n}" for n in numbers], pa.string()),
            "kind": column([f"k{n % 3}" for n in numbers], pa.string()).dictionary_encode(),
            "small": column(numbers, pa.int16()),
            "large": column([2**63 + n for n in numbers], pa.uint64()),
            "score": column([n / 7 for n in numbers], pa.float64()),
            "score32": column([n / 7 for n in numbers], pa.float32()),
            "flag": column([n % 2 == 0 for n in numbers], pa.bool_()),
            "day": column([time.date() for time in times], pa.date32()),
            "made": column(times, pa.timestamp("us")),
            "seen": column(times, pa.timestamp("ms", "America/New_York")),
            "tags": column([[f"t{n}", None][: n % 3] for n in numbers], pa.list_(pa.string())),
        }
    )


COLUMNS = table(1).column_names[1:]


@pytest.mark.parametrize("options", [{}, {"row_group_size": 7}, {"use_dictionary": False}])
def test_values_are_those_that_pyarrow_reads(options: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", table(), **options)
    found = carried_from(path, ",".join(COLUMNS))
    given = pq.read_table(path, columns=COLUMNS)
    seen = given["seen"].cast(pa.timestamp("us", "UTC"))
    given = given.set_column(COLUMNS.index("seen"), "seen", seen)
    assert found == [{**row, "not_carried": 0} for row in given.to_pylist()]


def test_the_schema_of_rows_says_the_types(tmp_path: Path) -> None:
    write(tmp_path / "p.parquet", table())
    found = plan_shards(str(tmp_path), carry=",".join(reversed(COLUMNS))).shards.carry
    assert found.as_document() == {
        "tags": "string[]", "seen": "timestamp", "made": "datetime", "day": "date",
        "flag": "bool", "score32": "float32", "score": "float64", "large": "uint64",
        "small": "int16", "kind": "string", "text": "string",
    }  # fmt: skip
    assert list(found.as_document()) == COLUMNS[::-1]


def test_images_of_a_list_have_the_values_of_their_row(tmp_path: Path) -> None:
    given = pa.table({"images": [[PHOTO, PHOTO], [], [PHOTO]], "split": ["a", "b", "c"]})
    write(tmp_path / "p.parquet", given)
    assert [row["split"] for row in carried_from(tmp_path, "split")] == ["a", "a", "b", "c"]


def test_a_failed_image_keeps_its_values(tmp_path: Path) -> None:
    given = pa.table({"image": pa.array([None, b"", b"no"], pa.binary()), "n": [1, 2, 3]})
    write(tmp_path / "p.parquet", given)
    assert [row["n"] for row in carried_from(tmp_path, "n")] == [1, 2, 3]


def test_what_is_of_another_type_or_too_large_is_counted(tmp_path: Path) -> None:
    given = pa.table({"image": [PHOTO] * 3, "n": ["1", "many", "x" * 70_000]})
    write(tmp_path / "p.parquet", given)
    assert carried_from(tmp_path, "n:int64") == [
        {"n": 1, "not_carried": 0},
        {"n": None, "not_carried": 1},
        {"n": None, "not_carried": 1},
    ]
    assert [row["not_carried"] for row in carried_from(tmp_path, "n")] == [0, 0, 1]


def test_types_that_are_not_carried_may_be_carried_as_others(tmp_path: Path) -> None:
    prices = pa.array([None, "1.50"], pa.string()).cast(pa.decimal128(5, 2))
    write(tmp_path / "p.parquet", pa.table({"image": [PHOTO] * 2, "price": prices}))
    assert [row["price"] for row in carried_from(tmp_path, "price:string")] == [None, "1.50"]
    assert [row["price"] for row in carried_from(tmp_path, "price:float")] == [None, 1.5]


def test_a_damaged_column_costs_no_image(tmp_path: Path) -> None:
    given = pa.table({"image": [PHOTO] * 30, "n": [f"value {n}" for n in range(30)]})
    path = write(
        tmp_path / "p.parquet", given, use_dictionary=False, row_group_size=10,
        write_page_checksum=True, compression="none",
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    place = content.index(b"value 15")
    content[place] ^= 1
    path.write_bytes(content)
    rows = carried_from(path, "n")
    assert [row["n"] for row in rows[:10]] == [f"value {n}" for n in range(10)]
    assert [row["not_carried"] for row in rows] == [0] * 10 + [1] * 20
    (shard,) = plan_shards(str(path)).shards
    assert [row["status"] for row in read_rows(shard, 0)] == ["ok"] * 30


def test_a_file_without_the_column_has_nulls(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"image": [PHOTO], "n": [1]}))
    write(tmp_path / "b.parquet", pa.table({"image": [PHOTO]}))
    found = plan_shards(str(tmp_path), carry="n")
    assert found.files_without == {"n": 1}
    assert [row["n"] for row in carried_from(tmp_path, "n")] == [1, None]


def test_carried_columns_are_read_in_batches_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_batches, "MAX_ENCODED_BYTES", 6000)  # images come row by row
    path = write(tmp_path / "p.parquet", table(), use_dictionary=False)
    (shard,) = plan_shards(str(path), carry="small").shards
    found = [row["carried"]["small"] for row in read_parquet(shard)]
    assert found == table()["small"].to_pylist()
