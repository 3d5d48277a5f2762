"""What killed exports and exports to one place at once leave behind."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli import main, message_of
from jobs.exports.place import one_file
from pipeline.storage import kernel_locks
from pipeline.storage.errors import InputError
from pipeline.storage.unfinished import hidden_place, remove_leftovers
from tests.support.labelled import LABELS, SOURCE, Labelled, random_boxes, write_run

KILLED = """
import os, sys
from pathlib import Path
from pipeline.storage.unfinished import hidden_place
with hidden_place(Path(sys.argv[1]), Path.mkdir) as made:
    (made / "images").mkdir()
    (made / "images" / "a.jpg").write_bytes(b"a")
    os._exit(9)
"""


@pytest.fixture
def output(tmp_path: Path) -> str:
    return write_run(
        tmp_path / "out", [Labelled(f"{SOURCE}/a.jpg", random_boxes(1, 2))], LABELS, source=SOURCE
    )


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def test_the_next_export_deletes_what_a_killed_one_left(output: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert subprocess.run([sys.executable, "-c", KILLED, str(made)], check=False).returncode == 9
    others = [".made.x", ".made.0123abcd", ".made.2.0123abcd.unfinished"]
    for name in others:
        (tmp_path / name).mkdir()
    assert len(hidden(tmp_path)) == 4
    assert main(["export", output, str(made), "--to", "yolo"]) == 0
    assert sorted(hidden(tmp_path)) == sorted(others)
    (made / ".made.0123abcd.unfinished").mkdir()
    assert main(["export", output, str(made), "--to", "yolo", "--overwrite"]) == 0
    assert hidden(made) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_is_being_written_is_no_leftover(make: Callable[[Path], None], tmp_path: Path) -> None:
    place = tmp_path / "made"
    with hidden_place(place, make) as first, hidden_place(place, make) as second:
        remove_leftovers(place)
        assert first.exists() and second.exists() and first != second
    assert hidden(tmp_path) == []


def test_a_folder_that_somebody_holds_is_waited_for_a_while_only(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may read a folder may lock it: exports, and queries into files, hung for ever."""
    monkeypatch.setattr(kernel_locks, "LOCK_SECONDS", 0.5)
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["export", output, str(tmp_path / "made"), "--to", "yolo"]) == 0
        assert main(["query", output, "SELECT 1", "--out", str(tmp_path / "a.csv")]) == 0
    finally:
        os.close(held)


def test_a_file_that_appeared_meanwhile_stays(tmp_path: Path) -> None:
    place = tmp_path / "labels.json"
    with (
        pytest.raises(InputError, match="exists: give another, or pass --overwrite"),
        one_file(str(place), overwrite=False) as file,
    ):
        file.write("mine")
        with one_file(str(place), overwrite=False) as other:
            other.write("other")
    assert place.read_text() == "other"
    with one_file(str(place), overwrite=True) as file:
        file.write("new")
    assert place.read_text() == "new"
    assert os.listdir(tmp_path) == ["labels.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_what_the_user_named(number: int, tmp_path: Path) -> None:
    hidden_file = str(tmp_path / ".x.csv.0123abcd.unfinished")
    with pytest.raises(OSError) as error, one_file(str(tmp_path / "x.csv")):
        raise OSError(number, os.strerror(number), hidden_file)
    assert message_of(error.value).startswith(f"{tmp_path}/x.csv: the ")
    assert os.listdir(tmp_path) == []


def test_classes_are_chosen_by_number_too(output: str, tmp_path: Path) -> None:
    found = []
    for number, words in enumerate((LABELS[2], "2")):
        file = tmp_path / f"{number}.csv"
        assert main(["export", output, str(file), "--to", "csv", "--labels", words]) == 0
        found.append(file.read_text())
    assert found[0] == found[1]
    assert main(["export", output, str(tmp_path / "x"), "--to", "csv", "--labels", "77"]) == 2


@pytest.mark.parametrize("form", ["yolo", "voc", "coco", "labelstudio"])
def test_an_image_without_a_size_is_named(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables that somebody edited may have one."""
    images = [Labelled(f"{SOURCE}/a.jpg", random_boxes(1, 2), width=0)]
    output = write_run(tmp_path / "edited", images, LABELS, source=SOURCE)
    name = "made.json" if form in ("coco", "labelstudio") else "made"
    assert main(["export", output, str(tmp_path / name), "--to", form]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{SOURCE}/a.jpg has a size of 0 x 480" in line
    assert not (tmp_path / name).exists()
