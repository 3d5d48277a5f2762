"""`compact` refuses tables that are not as they were written: its own would hide the damage."""

import json
import os
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.output import paths
from jobs.output.catalog import committed_runs
from tests.support.damage import DAMAGES
from tests.support.nights import NIGHTS, write_nights


@pytest.mark.parametrize("table", ["images", "detections"])
@pytest.mark.parametrize("damage", ["cut", "bit 1 at 0.5", "bit 7 at 0.3"])
def test_a_damaged_table_is_named_and_nothing_is_changed(
    table: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(write_nights(tmp_path / "labels"))
    (file,) = output.glob(f"{table}/run={NIGHTS[1]}/part-*.parquet")
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    before = sorted(path for path in output.rglob("*") if path.is_file())
    assert main(["compact", str(output)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(file.relative_to(output)) in said
    assert sorted(path for path in output.rglob("*") if path.is_file()) == before
    file.write_bytes(whole)
    assert main(["compact", str(output)]) == 0
    assert [run["compacts"] for run in committed_runs(str(output))] == [True]


@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
@pytest.mark.parametrize("pattern", ["run.json", "plan*.parquet"])
def test_a_damaged_document_of_the_newest_run_is_named_before_anything_is_written(
    pattern: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(write_nights(tmp_path / "labels"))
    (file,) = output.glob(f"_runs/{NIGHTS[-1]}/{pattern}")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    code = main(["compact", str(output)])
    said = capsys.readouterr().err
    if code == 0:  # the bit lies where nothing reads it
        assert damage.startswith("bit")
        return
    assert code == 1 and said.count("\n") == 1 and str(file.relative_to(output)) in said
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("table", ["images", "detections"])
def test_a_pipe_in_place_of_a_table_is_named_and_not_waited_for(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(write_nights(tmp_path / "labels"))
    (file,) = output.glob(f"{table}/run={NIGHTS[2]}/part-*.parquet")
    file.unlink()
    os.mkfifo(file)
    assert main(["query", str(output), "SELECT count(*) FROM latest"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{file.relative_to(output)} of OUTPUT is damaged" in said


def test_a_compact_that_was_taken_over_does_not_blame_missing_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other command deletes tables that this one is about to read."""
    output = Path(write_nights(tmp_path / "labels"))

    def take_over(*_: object) -> list[dict[str, object]]:
        lock = output / paths.LOCK
        lock.write_text(json.dumps({**json.loads(lock.read_text()), "token": "f" * 32}))
        for file in output.glob("images/run=*/part-*.parquet"):
            file.unlink()
        return []

    monkeypatch.setattr("jobs.compact.find_problems", take_over)
    monkeypatch.setattr("jobs.compact.OutputWriter.begin_writing", lambda _: None)
    assert main(["compact", str(output)]) == 1
    assert "taken over" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "emptied", "bit 1 at 0.5", "bit 4 at 1.0"])
@pytest.mark.parametrize("table", ["images", "detections"])
def test_a_query_over_a_damaged_table_never_blames_the_arguments(
    table: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bit may lie where nothing reads it, or where nobody can see that it is wrong."""
    output = Path(write_nights(tmp_path / "labels"))
    (file,) = output.glob(f"{table}/run={NIGHTS[2]}/part-*.parquet")
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    code = main(["query", str(output), "SELECT * FROM latest_images JOIN latest USING (image_id)"])
    said = capsys.readouterr().err
    assert code in (0, 1) and said.count("\n") == code, said
    assert code == 1 or damage.startswith("bit")
