"""`runs` lists runs in their order, deletes them and verifies them."""

import json
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.compact import compact
from jobs.output import paths
from jobs.output.catalog import committed_runs
from jobs.output.run_ids import new_run_id
from tests.support.labelled import write_run
from tests.support.nights import LABELS, NIGHTS, photo, write_nights
from tests.support.tables import rows


@pytest.fixture
def output(tmp_path: Path) -> str:
    return write_nights(tmp_path / "labels")


def test_runs_are_sorted_by_their_order_in_the_log_not_by_clocks(output: str) -> None:
    write_run(Path(output), [photo("b.jpg", 4, "3")], LABELS, "20990101T000000Z-ffffff")
    assert new_run_id(output)[:16] == "20990101T000001Z"
    (done,) = compact(output)
    assert done.run_id[:16] == "20990101T000001Z"
    assert new_run_id(output) > done.run_id


def test_deleting_a_run_also_deletes_the_runs_that_it_replaced(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", output, "--delete", NIGHTS[1]]) == 2  # no terminal can be asked
    assert "pass --yes" in capsys.readouterr().err
    assert main(["runs", output, "--delete", NIGHTS[1], "--yes"]) == 0
    assert rows(output, "SELECT etag FROM latest_images WHERE uri LIKE '%b.jpg'") == [("1",)]
    (done,) = compact(output)
    assert main(["runs", output, "--delete", done.run_id, "--yes"]) == 0
    assert committed_runs(output) == []
    left = {str(path.relative_to(output)) for path in Path(output).rglob("*") if path.is_file()}
    assert {name for name in left if not name.startswith(paths.LOG)} == {paths.OLD_LOCK}
    assert main(["runs", output, "--delete", "nothing", "--yes"]) == 2


def test_verify_finds_altered_and_missing_files(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", output, "--verify"]) == 0
    assert "as they were written" in capsys.readouterr().out
    (first,) = Path(output, "detections", f"run={NIGHTS[0]}").iterdir()
    content = bytearray(first.read_bytes())
    content[100] ^= 1
    first.write_bytes(content)
    (second,) = Path(output, "images", f"run={NIGHTS[1]}").iterdir()
    second.unlink()
    assert main(["runs", output, "--verify"]) == 1
    printed = capsys.readouterr().out
    assert f"{NIGHTS[0]} {first.relative_to(output)}: its bytes" in printed
    assert "it is not there" in printed and "4 problems\n" in printed


def test_one_problem_is_one(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = Path(output, "detections", f"run={NIGHTS[0]}").iterdir()
    file.write_bytes(b"x" + file.read_bytes()[1:])
    assert main(["runs", output, "--verify"]) == 1
    assert "1 problem\n" in capsys.readouterr().out


def test_runs_are_listed_and_shown(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", output, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [(run["images"], run["failed"], run["detections"]) for run in runs] == [
        (4, 0, 8), (2, 1, 1), (2, 0, 7),
    ]  # fmt: skip
    assert main(["runs", output, "--show", NIGHTS[0]]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["run_id"] == NIGHTS[0]
    assert main(["compact", output]) == 0
    assert "3 runs are run" in capsys.readouterr().out
    assert main(["runs", output]) == 0
    assert "(of 3 runs)" in capsys.readouterr().out
