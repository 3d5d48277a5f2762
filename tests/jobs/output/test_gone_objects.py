"""Objects that left INPUT are left out on demand, and come back when they do."""

from pathlib import Path

import pyarrow as pa
import pytest

from jobs.cli import main
from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.errors import DamagedOutput
from jobs.output.gone_objects import gone_objects, hide_gone_objects, record_gone_objects
from jobs.output.run_documents import write_record, write_table
from jobs.output.views import connect
from pipeline.storage.files import join
from tests.support.labelled import LABELS, Labelled, random_boxes, write_run
from tests.support.samples import write_jpegs

FIRST, SECOND, THIRD = (f"2026010{day}T000000Z-aaaaaa" for day in (1, 2, 3))
LAKE, OTHER = "file:///lake", "file:///other"


def image(name: str, source: str = LAKE) -> Labelled:
    return Labelled(f"{source}/{name}.jpg", random_boxes(1, 2))


def write_gone(output: str, run_id: str, *names: str) -> None:
    """Record what a run finds gone, as `label` does."""
    if names:
        table = pa.table({"uri": [f"{LAKE}/{name}.jpg" for name in names]})
        write_table(join(output, paths.document(run_id, "gone.parquet")), table)
    record = {"run_id": run_id, "options": {}, "gone": len(names)}
    write_record(output, run_id, record)


def visible(output: str, view: str) -> list[str]:
    with connect(output) as connection:
        hide_gone_objects(connection, output)
        rows = connection.sql(f"SELECT DISTINCT image_id[-5:-5] FROM {view} ORDER BY 1").fetchall()
    return [name for (name,) in rows]


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Of the images a, b and c the second run found b gone."""
    folder = str(tmp_path / "out")
    write_run(folder, [image("a"), image("b")], LABELS, FIRST, source=LAKE)
    write_run(folder, [image("c")], LABELS, SECOND, source=LAKE)
    write_gone(folder, FIRST)
    write_gone(folder, SECOND, "b")
    return folder


@pytest.mark.parametrize("view", ["images", "detections", "latest_images", "latest"])
def test_views_leave_out_what_is_gone(output: str, view: str) -> None:
    assert visible(output, view) == ["a", "c"]


def test_nothing_is_left_out_of_an_output_whose_objects_are_all_there(tmp_path: Path) -> None:
    write_run(tmp_path / "out", [image("a")], LABELS, source=LAKE)
    assert visible(str(tmp_path / "out"), "latest") == ["a"]


def test_an_object_that_came_back_counts_again(output: str) -> None:
    write_run(output, [image("b")], LABELS, THIRD, source=LAKE)
    write_gone(output, THIRD, "a")
    assert visible(output, "latest") == ["b", "c"]


def test_an_object_that_another_input_has_is_not_gone(output: str) -> None:
    write_run(output, [image("b"), image("d", OTHER)], LABELS, THIRD, source=OTHER)
    assert visible(output, "latest") == ["a", "b", "c", "d"]


def test_a_listing_that_found_nothing_new_is_remembered(output: str) -> None:
    runs = read_catalog(output).labelling_runs()
    since = Path(output) / paths.document(SECOND, "gone-since.parquet")
    record_gone_objects(output, runs, LAKE, pa.array([f"{LAKE}/b.jpg"]))
    assert not since.exists()  # as the run found it
    record_gone_objects(output, runs, LAKE, pa.array([f"{LAKE}/a.jpg"]))
    assert visible(output, "latest") == ["b", "c"]
    record_gone_objects(output, runs, LAKE, pa.array([], pa.string()))
    assert visible(output, "latest") == ["a", "b", "c"]
    written = since.stat().st_mtime_ns
    record_gone_objects(output, runs, LAKE, pa.array([], pa.string()))
    assert since.stat().st_mtime_ns == written


def test_what_is_gone_stays_so_when_runs_are_merged(output: str) -> None:
    assert main(["compact", output]) == 0
    assert visible(output, "latest") == ["a", "c"]


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_damaged_record_is_named(output: str, damage: str) -> None:
    record = Path(output) / paths.document(SECOND, "gone.parquet")
    content = record.read_bytes()
    record.unlink()
    if damage == "cut":
        record.write_bytes(content[:-9])
    with pytest.raises(DamagedOutput, match=r"gone\.parquet"):
        gone_objects(output)


@pytest.mark.slow
def test_label_remembers_what_is_gone_though_nothing_is_new(tmp_path: Path) -> None:
    lake, output = write_jpegs(tmp_path / "lake", "ab"), str(tmp_path / "out")
    command = ["label", str(lake), output, "--model", "shapes-tiny", "--no-page"]
    assert main(command) == 0
    (lake / "b.jpg").rename(tmp_path / "b.jpg")
    assert main(command) == 0
    assert len(read_catalog(output).committed_runs()) == 1
    assert visible(output, "latest_images") == ["a"]
    (tmp_path / "b.jpg").rename(lake / "b.jpg")
    assert main(command) == 0
    assert visible(output, "latest_images") == ["a", "b"]
