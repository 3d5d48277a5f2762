"""Queries of the tables: worked examples, every format, and other tools on the plain files."""

import csv
import json
import shutil
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.output.views import connect
from jobs.query import EXAMPLES
from pipeline.schema import DETECTIONS, IMAGES
from pipeline.stages.publish import sort_by_label, write_part
from tests.support.committed import commit_run, make_target
from tests.support.labelled import Labelled, write_run

NIGHTS = ("20260101T000000Z-aaaaaa", "20260102T000000Z-aaaaaa")
BOXES = [(1, 0.9, 0.0, 1.0, 20.0, 30.0), (2, 0.4, 5.0, 5.0, 60.0, 70.0)]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    labels = tmp_path_factory.mktemp("query") / "labels [1]*?"
    images = [Labelled(f"file:///{name}.jpg", BOXES) for name in "ad"] + [Labelled("file:///b.jpg")]
    broken = Labelled("file:///\x1b[31mc'; DROP.jpg", status="undecodable")
    write_run(labels, [*images, broken], ("", "circle", "star"), NIGHTS[0])
    write_run(labels, [Labelled("file:///a.jpg", BOXES[:1], etag="2")], ("", "circle"), NIGHTS[1])
    return str(labels)


def test_errors_about_a_url_in_sql_hold_no_secrets(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = "SELECT * FROM read_parquet('hf://datasets/a/b?token=5ecret12')"
    assert main(["query", output, sql]) == 2
    printed = capsys.readouterr().err
    assert "cannot be read" in printed
    assert "5ecret12" not in printed


@pytest.mark.parametrize("title, sql", EXAMPLES)
def test_worked_examples_have_answers(
    title: str, sql: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["query", output, sql, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer, title


def test_there_are_eleven_examples_and_they_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLES) == 11
    assert main(["query", "--examples"]) == 0
    printed = capsys.readouterr().out
    assert all(sql in printed for _, sql in EXAMPLES)
    readme = " ".join((Path(__file__).parents[2] / "jobs" / "README.md").read_text().split())
    assert all(" ".join(sql.split()) in readme for _, sql in EXAMPLES)


SQL = "SELECT image_id, label, score FROM latest WHERE image_id LIKE '%a.jpg'"


def test_every_format_holds_the_same(
    output: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    expected = [("file:///a.jpg", "circle", np.float32(0.9))]
    for form in ("csv", "json", "parquet"):
        file = tmp_path / f"answer.{form}"
        assert main(["query", output, SQL, "--out", str(file)]) == 0
        assert main(["query", output, SQL, "--format", form]) == 0
        assert capfdbinary.readouterr().out == file.read_bytes()
    with (tmp_path / "answer.csv").open() as lines:
        rows = [(r["image_id"], r["label"], np.float32(r["score"])) for r in csv.DictReader(lines)]
    assert rows == expected
    read = json.loads((tmp_path / "answer.json").read_text())
    assert [(r["image_id"], r["label"], np.float32(r["score"])) for r in read] == expected
    table = pq.read_table(tmp_path / "answer.parquet")
    assert [tuple(row.values()) for row in table.to_pylist()] == expected


def test_names_do_not_drive_the_terminal(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", output, "SELECT uri FROM images"]) == 0
    printed = capsys.readouterr().out
    assert "DROP.jpg" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["OUTPUT", "SELEC 1"], "syntax error"),
        (
            ["OUTPUT", "SELECT * FROM boxes"],
            "boxes does not exist! (there are latest, latest_images, ",
        ),
        (
            ["OUTPUT", 'SELECT 1 FROM latest WHERE label = "star"'],
            "clause! A text stands in single quotes: 'star'\nCandidate bindings",
        ),
        (["OUTPUT", "SELECT star FROM latest"], "not found in FROM clause!\nCandidate bindings"),
        (["OUTPUT", "CREATE TABLE t (x INT)"], "query only reads"),
        (["OUTPUT", "SELECT 1", "--out", "answer.xls"], "must end in .csv, .json or .parquet"),
        (["OUTPUT"], "needs OUTPUT and SQL"),
        (["nowhere", "SELECT 1"], "holds no finished run"),
    ],
)
def test_mistakes_are_reported(
    arguments: list[str], message: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    completed = [output if argument == "OUTPUT" else argument for argument in arguments]
    assert main(["query", *completed]) == 2
    assert message in capsys.readouterr().err


def test_other_tools_read_the_plain_files(output: str, tmp_path: Path) -> None:
    """They read Hive partitions by `run`, without our code."""
    folder = shutil.copytree(output, tmp_path / "labels") / "detections"
    frames = [
        pd.read_parquet(folder),
        pl.read_parquet(folder, hive_partitioning=True).to_pandas(),
        ds.dataset(folder, partitioning="hive").to_table().to_pandas(),
        duckdb.execute(f"FROM read_parquet('{folder}/*/*.parquet', hive_partitioning = true)").df(),
    ]
    for frame in frames:
        assert sorted(frame["run"].astype(str)) == [*[NIGHTS[0]] * 4, NIGHTS[1]]
        assert set(frame["label"]) == {"circle", "star"}
        assert frame["score"].dtype == np.float32


def make_part_tables(number: int, images: int, boxes: int) -> tuple[pa.Table, pa.Table]:
    """Make tables of images with `boxes` boxes each, of 80 classes, some of which are rare."""
    rng = np.random.default_rng(number)
    ids = pa.array([f"s3://lake/2026/album-{i // 500:04d}/IMG_{i:07d}.jpg" for i in range(images)])
    every = pa.array(np.repeat(np.arange(images), boxes))
    shares = 1 / np.arange(1, 81)
    label_ids = rng.choice(80, images * boxes, p=shares / shares.sum()).astype(np.int32)
    scores = np.sort(0.3 + 0.7 * rng.beta(2, 3, (images, boxes)).astype(np.float32))[:, ::-1]
    corners = rng.uniform(0, 800, (2, images * boxes)).astype(np.float32)
    columns = {
        "image_id": ids.take(every),
        "shard": pa.array([f"s3://lake#files-{number:05d}"] * len(every)),
        "detection": np.tile(np.arange(boxes, dtype=np.int32), images),
        "label_id": label_ids,
        "label": pa.array([f"class {i:02d}" for i in range(80)]).take(pa.array(label_ids)),
        "score": scores.ravel(),
        "x_min": corners[0],
        "y_min": corners[1],
        "x_max": corners[0] + 50,
        "y_max": corners[1] + 50,
        "run_id": [NIGHTS[0]] * len(every),
    }
    detections = pa.table([columns[name] for name in DETECTIONS.names], schema=DETECTIONS)
    own = {"image_id": ids, "uri": ids, "shard": [f"s3://lake#files-{number:05d}"] * images}
    none = pa.nulls(images)
    return (
        pa.table(
            [own.get(name, none.cast(IMAGES.field(name).type)) for name in IMAGES.names], IMAGES
        ),
        sort_by_label(detections),
    )


def count_bytes_read() -> int:
    """Return how many bytes this process has read, from files or their cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.slow
def test_a_class_of_ten_million_boxes_is_found_in_a_small_part_of_the_files(tmp_path: Path) -> None:
    output = str(tmp_path)
    target = make_target(output, NIGHTS[0])
    files = []
    for number in range(10):
        for name, table in zip(
            ("images", "detections"), make_part_tables(number, 100_000, 10), strict=True
        ):
            path = target.part_name.format(table=name, number=number)
            files.append(write_part(output, path, table))
    commit_run(target, "s3://lake", files, {"ok": 1_000_000})
    size = sum(file.bytes for file in files if file.path.startswith("detections"))
    for columns, share in (("count(*), max(score)", 0.03), ("*", 0.1)):
        with connect(output) as connection:
            before, began = count_bytes_read(), time.perf_counter()
            rows = connection.sql(
                f"SELECT {columns} FROM detections WHERE label = 'class 10' AND score > 0.8"
            ).fetchall()
            seconds, read = time.perf_counter() - began, count_bytes_read() - before
        print(f"{columns}: {read / 1e6:.1f} of {size / 1e6:.0f} MB, {1000 * seconds:.0f} ms")
        assert rows
        assert read < share * size
