"""First mistakes with an OUTPUT, and errors that name the broken file."""

import os
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.compact import compact
from jobs.output import paths
from jobs.output.output_writer import OutputWriter
from jobs.output.run_documents import write_record
from jobs.output.views import explain_query_errors, limit_memory
from pipeline.storage.errors import CommandFailed
from pipeline.storage.files import join, open_location
from tests.support.labelled import LABELS, Labelled, random_boxes, write_run

RUNS = ("20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb")
SQL = "SELECT count(*), sum(score), min(label), max(x_min), max(image_id) FROM latest"


def images(name: str) -> list[Labelled]:
    return [Labelled(f"file:///lake/{name}{k}.jpg", random_boxes(k, 30)) for k in range(10)]


@pytest.fixture
def output(tmp_path: Path) -> str:
    return write_run(tmp_path / "labels", images("a"), LABELS, RUNS[0])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "a text": lambda data: b"this is a text\n" * 20,
    "pages": lambda data: data[:50] + bytes(200) + data[250:],
    "headers of pages": lambda data: data[:4] + bytes(255 - b for b in data[4:600]) + data[600:],
    "the footer": lambda data: data[:-60] + b"\xff" * 40 + data[-20:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_damaged_table_is_named(
    damage: str, place: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(request.getfixturevalue("tmp_path" if place == "disk" else "bucket"))
    output = write_run(join(root, "labels"), images("a"), LABELS, RUNS[0])
    fs, path = open_location(output, "OUTPUT")
    (part,) = [n for n in fs.find(path) if "/detections/run=" in n and n.endswith(".parquet")]
    name = part[part.index("detections/") :]
    data = fs.cat_file(part)
    fs.pipe_file(part, DAMAGES[damage](data))
    assert main(["query", output, SQL]) == 1
    assert name in capsys.readouterr().err
    fs.rm(part)
    assert main(["query", output, SQL]) == 1
    assert name in capsys.readouterr().err


def test_a_table_of_other_columns_is_named(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    (part,) = Path(output).glob("detections/run=*/part-*.parquet")
    pq.write_table(pa.table({"a": [1]}), part)
    assert main(["query", output, SQL]) == 1
    assert part.name in capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_the_users_is_a_mistake(
    damage: str, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if it is a copy of a table, with its name."""
    (part,) = Path(output).glob("detections/run=*/part-*.parquet")
    mine = tmp_path / "backup" / part.relative_to(output)
    mine.parent.mkdir(parents=True)
    mine.write_bytes(DAMAGES[damage](part.read_bytes()))
    assert main(["query", output, f"SELECT max(COLUMNS(*)) FROM '{mine}'"]) == 2
    mine.unlink()
    capsys.readouterr()
    assert main(["query", output, f"FROM '{mine}'"]) == 2
    assert str(mine) in capsys.readouterr().err


def test_an_output_without_runs_says_that_they_were_deleted(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", output, "--delete", RUNS[0], "--yes"]) == 0
    capsys.readouterr()
    assert main(["query", output, SQL]) == 2
    assert "all its runs were deleted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["query", "SELECT 1"], ["report"], ["report", "--run", RUNS[0]], ["runs"]]
)
def test_an_output_whose_first_run_was_ended_says_how_to_go_on(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a budget leaves it that ends a run before its first block."""
    output = str(tmp_path / "labels")
    with OutputWriter(output) as writer:
        writer.begin_writing()
        write_record(output, RUNS[0], {})
        writer.store.remove(writer.store.names(paths.run_folder(RUNS[0])))
    name, *rest = command
    assert main([name, output, *rest]) == 2
    said = "no run has finished yet; the same `detr-batch label` again makes one"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["query", "SELECT 1"], ["report"], ["runs"], ["runs", "--verify"], ["compact"]]
)
def test_an_output_that_is_none_is_explained(
    command: list[str], output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    name, *rest = command
    for place, said in (
        (tmp_path / "lables", "there is nothing; check the spelling"),
        (photos, "it holds other files, such as a.jpg; give OUTPUT"),
        (photos / "a.jpg", "OUTPUT"),  # for some commands the operating system says why
        (tmp_path, f"did you mean {output}?"),
        (Path(output) / "detections", f"it is a part of the OUTPUT {output}: give that"),
        (tmp_path / "empty", "`detr-batch label` makes one"),
    ):
        assert main([name, str(place), *rest]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_a_folder_above_output_in_a_bucket_is_explained(
    bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = write_run(join(bucket, "labels"), images("a"), LABELS, RUNS[0])
    assert main(["query", bucket, "SELECT 1"]) == 2
    assert f"did you mean {output}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["report", "--run"], ["runs", "--show"], ["runs", "--yes", "--delete"]]
)
def test_a_misspelt_run_is_corrected(
    command: list[str], output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(output, images("b"), LABELS, RUNS[1])
    name, *rest = command
    for given in ("20260102", "20260102T000000Z-bbbbb", "20260102T000000Z-bbbcbb"):
        assert main([name, output, *rest, given]) == 2
        assert f"did you mean {RUNS[1]}" in capsys.readouterr().err


def test_messages_about_merged_runs_agree(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(output, images("b"), LABELS, RUNS[1])
    (made,) = compact(output)
    for command in (["report", output, "--html", "x.html", "--run"], ["runs", output, "--show"]):
        assert main([*command, RUNS[0]]) == 2
        error = capsys.readouterr().err
        assert f"into run {made.run_id}" in error and f"report --run {RUNS[0]}" in error
    assert not os.path.exists("x.html")
    assert main(["report", output, "--run", made.run_id]) == 2
    error = capsys.readouterr().err
    assert "`compact` made this run" in error and f"{RUNS[0]} or {RUNS[1]}" in error


def test_a_run_that_compact_made_can_be_compared(output: str, tmp_path: Path) -> None:
    write_run(output, images("b"), LABELS, RUNS[1])
    (made,) = compact(output)
    other = write_run(tmp_path / "other", images("a"), LABELS, RUNS[0])
    assert main(["compare", output, other, "--run-a", made.run_id]) == 0


def test_a_full_disk_of_temporary_files_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(CommandFailed, match="no room is left for temporary files: make room, or"),
        explain_query_errors(str(tmp_path)),
        duckdb.connect() as connection,
    ):
        limit_memory(connection, "50MB", str(tmp_path))
        connection.execute("SET max_temp_directory_size = '1MB'")
        connection.execute("SELECT * FROM range(30000000) t(i) ORDER BY hash(i)").fetchmany(5)
