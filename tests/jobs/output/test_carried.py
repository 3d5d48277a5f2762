"""Runs with other carried columns, and without any, in one OUTPUT: views, compact, verify."""

import datetime as dt
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.compact import compact
from jobs.output.carried import carried_as_sql, common_carry
from jobs.output.catalog import committed_runs
from jobs.output.errors import DamagedOutput
from jobs.output.known_objects import read_plan
from jobs.output.manifest import Manifest, check_manifest
from jobs.output.suppressed_boxes import hide_suppressed_boxes
from jobs.output.views import connect
from jobs.report.samples import choose_samples
from jobs.runs import verify
from pipeline.carry.columns import carry_of_document
from pipeline.plan.shards import PLAN
from pipeline.schema import IMAGES
from pipeline.stages.box_rules import BoxRules
from tests.support.carrying import publish_run
from tests.support.samples import jpeg, write_tar
from tests.support.tables import rows

PHOTO = jpeg(1)
DAY = dt.datetime(2020, 1, 2, 3, 4, 5, 678901)
NIGHTS = [f"2026010{night}T000000Z-aaaaaa" for night in range(1, 6)]


def write_lake(folder: Path, file: str, /, **columns: Any) -> Path:
    (count,) = {len(column) for column in columns.values()}
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": [PHOTO] * count, **columns}), folder / file)
    return folder / file


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five runs over a file each: without columns, with several, with others, of other types."""
    folder = tmp_path_factory.mktemp("carried")
    lake, output = folder / "lake", folder / "out"

    def night(number: int, carry: str | None, **columns: Any) -> None:
        path = write_lake(lake, "p.parquet", **columns)
        publish_run(path, output, carry, NIGHTS[number])
        path.unlink()

    night(0, None, split=["none"])
    made = pa.array([DAY, None], pa.timestamp("us"))
    tags = pa.array([["x", None], None], pa.list_(pa.string()))
    night(1, "split,n,made,tags", split=["train", None], n=[1, None], made=made, tags=tags)
    night(2, "caption,n", caption=["é"], n=[0.5])
    night(3, "SPLIT", SPLIT=[True])
    night(4, None, split=["none"])
    return output


IMAGE = "SELECT run[1:8] AS run, {} FROM images ORDER BY run, index_in_shard"


def test_views_have_all_columns_and_null_where_a_run_has_none(output: Path) -> None:
    assert rows(output, IMAGE.format("split, n, made, tags, caption")) == [
        ("20260101", None, None, None, None, None),
        ("20260102", "train", "1", DAY, ["x", None], None),
        ("20260102", None, None, None, None, None),
        ("20260103", None, "0.5", None, None, "é"),
        ("20260104", "true", None, None, None, None),
        ("20260105", None, None, None, None, None),
    ]
    described = rows(output, "SELECT column_name, column_type FROM (DESCRIBE images)")
    assert [name for name, _ in described] == [
        *IMAGES.names, "split", "n", "made", "tags", "caption", "run",
    ]  # fmt: skip
    types = dict(described)
    assert [types[name] for name in ("split", "n", "made", "tags")] == [
        "VARCHAR", "VARCHAR", "TIMESTAMP", "VARCHAR[]",
    ]  # fmt: skip
    assert rows(output, "SELECT count(*) FROM latest_images WHERE split = 'train'") == [(0,)]


def test_one_run_is_readable_by_other_readers(output: Path) -> None:
    folder = output / "images" / f"run={NIGHTS[1]}"
    table = pq.read_table(next(folder.iterdir()), partitioning=None)
    assert table.column_names == [*IMAGES.names, "split", "n", "made", "tags"]
    assert table.select(["split", "n", "made", "tags"]).to_pylist() == [
        {"split": "train", "n": 1, "made": DAY, "tags": ["x", None]},
        {"split": None, "n": None, "made": None, "tags": None},
    ]
    found = duckdb.sql(
        f"SELECT count(split), count(*) FROM read_parquet('{output}/images/*/*.parquet', "
        "union_by_name=true, hive_partitioning=true)"
    )
    assert found is not None and found.fetchall() == [(2, 6)]


def test_verify_knows_the_columns_of_each_run(output: Path) -> None:
    assert verify(str(output)) == []


def test_compact_keeps_the_columns_of_all_runs(tmp_path: Path) -> None:
    lake, output = tmp_path / "lake", tmp_path / "out"
    days = pa.array([DAY, None, DAY], pa.timestamp("us", "UTC"))
    columns: dict[str, Any] = {
        "images": [1, 2, 3], "part": ["a", None, "c"], "made": days, "l": [["x"], [], None],
        "u": pa.array([2**64 - 1, None, 0], pa.uint64()), "size": [0.5, None, 1.5],
        "kind": [True, None, False],
    }  # fmt: skip
    write_lake(lake, "a.parquet", **columns)
    publish_run(lake, output, None, NIGHTS[0])
    (lake / "a.parquet").unlink()
    write_lake(lake, "b.parquet", **columns)
    publish_run(lake, output, ",".join(columns), NIGHTS[1])
    (lake / "b.parquet").unlink()
    write_tar(lake / "t.tar", {"1.jpg": PHOTO, "1.json": b'{"images": 7, "new": "n"}'})
    publish_run(lake, output, "images:float64,new:string", NIGHTS[2])
    names = [*columns, "new"]
    selected = ", ".join(names).replace("made", "epoch_us(made)")
    query = f"SELECT image_id, {selected} FROM latest_images ORDER BY image_id"
    before = rows(output, query)
    (result,) = compact(str(output))
    assert rows(output, query) == before and result.runs == 3
    assert sum(row[1] is not None for row in before) == 4  # 3 of b.parquet, and that of the tar
    (run,) = committed_runs(str(output))
    assert run["carried"] == {
        "images": "string", "part": "string", "made": "timestamp", "l": "string[]",
        "u": "uint64", "size": "float64", "kind": "bool", "new": "string",
    }  # fmt: skip
    (file,) = (output / "images" / f"run={run['run_id']}").iterdir()
    assert pq.read_schema(file).names == [*IMAGES.names, *names]
    assert verify(str(output)) == []
    plans = pa.concat_tables(read_plan(str(output), run["plan"]))
    assert plans.schema == PLAN


def test_compact_keeps_types_beside_others_of_another_input(tmp_path: Path) -> None:
    """The views have both inputs: `n` and `tags` as text."""
    lake, output, large = tmp_path / "lake", tmp_path / "out", 2**53 + 1
    for night, name in enumerate("ab"):
        path = write_lake(lake, f"{name}.parquet", n=[large], tags=[["x"]])
        publish_run(lake, output, "n,tags", NIGHTS[night])
        path.unlink()
    write_lake(tmp_path / "other", "c.parquet", n=[0.5], tags=["y"])
    publish_run(tmp_path / "other", output, "n,tags", NIGHTS[2])
    (result,) = compact(str(output))
    (file,) = (output / "images" / f"run={result.run_id}").iterdir()
    table = pq.read_table(file, columns=["n", "tags"], partitioning=None)
    assert table.to_pylist() == [{"n": large, "tags": ["x"]}] * 2
    assert verify(str(output)) == []


def test_a_carried_column_with_the_name_of_a_count_of_boxes(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    write_lake(tmp_path / "lake", "a.parquet", suppressed=[3])
    publish_run(tmp_path / "lake", output, "suppressed")
    with closing(connect(output)) as connection:
        hide_suppressed_boxes(connection, BoxRules(nms=0.5), str(tmp_path))
        found = connection.sql("SELECT suppressed, num_detections FROM latest_images")
        assert found.fetchall() == [(3, 0)]


def test_carried_columns_with_names_of_boxes_and_of_queries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["score", "label", "label_id", "detection", "x_min", "name", "place", "drawn", "pair"]
    lake, output = tmp_path / "lake", str(tmp_path / "out")
    write_lake(lake, "a.parquet", **{name: [name] for name in names})
    publish_run(lake, output, ",".join(names))
    assert main(["export", output, str(tmp_path / "e.json"), "--to", "coco"]) == 0
    assert len(json.loads((tmp_path / "e.json").read_text())["images"]) == 1
    assert main(["compare", output, output]) == 0
    assert "1 in a, 1 in b; 1 compared" in capsys.readouterr().out
    with closing(connect(output)) as connection:
        samples = choose_samples(connection, [f"file://{lake}/a.parquet"], "true", ["circle"], 0.5)
    assert samples.chosen_from == 1


def run_with(carried: Any) -> Manifest:
    document: Any = {
        "run_id": NIGHTS[0], "input": "in", "model": "m", "model_fingerprint": "f", "images": {},
        "files": [], "replaces": [], "carried": carried,
    }  # fmt: skip
    return check_manifest("manifest.json", document)


def test_columns_of_runs_become_one_set() -> None:
    every: tuple[dict[str, str], ...] = (
        {},
        {"a": "int8", "B": "string"},
        {"b": "int8", "A": "uint8"},
    )
    runs = [run_with(one) for one in every]
    assert common_carry(runs).as_document() == {"a": "int16", "B": "string"}


@pytest.mark.parametrize("carried", [
    [], {"a": 1}, {"a": "VARCHAR; DROP"}, {"image_id": "string"}, {"a": "string", "A": "string"},
])  # fmt: skip
def test_a_hostile_manifest_is_damaged(carried: Any) -> None:
    with pytest.raises(DamagedOutput):
        run_with(carried)


def test_names_are_quoted_in_sql() -> None:
    hostile = 'a" FROM x; --'
    wanted = carry_of_document({hostile: "string", "l": "timestamp[]"})
    with closing(duckdb.connect()) as connection:
        columns = ", ".join(carried_as_sql(carry_of_document({}), wanted))
        found = connection.sql(f"SELECT {columns}")
        assert found.columns == [hostile, "l"] and found.fetchall() == [(None, None)]
        assert [str(kind) for kind in found.types] == ["VARCHAR", "TIMESTAMP WITH TIME ZONE[]"]
