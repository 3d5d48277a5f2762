"""A symbolic link in OUTPUT, or in the temporary folder, leads no deletion elsewhere."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.output import paths
from jobs.output.catalog import committed_runs
from jobs.output.store import OutputStore
from pipeline.isolation.journal import KEPT_SECONDS, CrashJournal
from pipeline.storage.errors import InputError
from pipeline.storage.files import open_location, remove_tree
from tests.jobs.output.test_old_versions import import_command, write_detections


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An OUTPUT with one run."""
    assert main(import_command(tmp_path / "out", write_detections(tmp_path, "a", 2))) == 0
    return tmp_path / "out"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Folders of somebody else, one of them with the form of a run under way."""
    folder = tmp_path / "elsewhere"
    for name in ("photos/a.jpg", "20260101T000000Z-aaaaaa/blocks/b.parquet", "notes"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_text(errors="replace") for path in files}


def put_link(place: Path, target: Path) -> None:
    """Put a link at `place`; what is there is moved to the target."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        for path in place.iterdir():
            path.rename(target / path.name)
        place.rmdir()
    place.symlink_to(target, target_is_directory=True)


@pytest.mark.parametrize(
    "place",
    [
        "_staging",
        "_staging/20260101T000000Z-aaaaaa",
        "_staging/20260101T000000Z-aaaaaa/blocks",
        "_runs",
        "_runs/log",
        "_runs/{run}",
        "images",
        "detections/run={run}",
    ],
)
@pytest.mark.parametrize("command", ["import", "compact", "delete"])
def test_a_linked_folder_of_output_is_refused(
    place: str,
    command: str,
    output: Path,
    elsewhere: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (run,) = committed_runs(str(output))
    put_link(output / place.format(run=run["run_id"]), elsewhere)
    before, within = contents(elsewhere), contents(output)
    words = {
        "import": import_command(output, write_detections(tmp_path, "b", 2)),
        "compact": ["compact", str(output)],
        "delete": ["runs", str(output), "--delete", run["run_id"], "--yes"],
    }[command]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{output / place.format(run=run['run_id'])} is a symbolic link" in said
    assert said.count("\n") == 1
    assert contents(elsewhere) == before and contents(output) == within


def test_output_may_be_a_link_and_hold_linked_files(output: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(output)
    (part,) = output.glob("images/*/*.parquet")
    (tmp_path / "part").write_bytes(part.read_bytes())
    part.unlink()
    part.symlink_to(tmp_path / "part")
    (run,) = committed_runs(str(output))
    delete = ["runs", str(tmp_path / "linked"), "--delete", run["run_id"], "--yes"]
    assert main(delete) == 0
    assert (tmp_path / "part").exists() and not os.path.lexists(part)


def test_a_link_that_appears_later_is_not_followed(output: Path, elsewhere: Path) -> None:
    before = contents(elsewhere)
    store = OutputStore(str(output))
    (output / "_staging").rmdir()
    (output / "_staging").symlink_to(elsewhere)
    for name in ("photos", "20260101T000000Z-aaaaaa"):
        with pytest.raises(InputError, match="_staging is a symbolic link"):
            remove_tree(*open_location(f"{output}/_staging/{name}", "OUTPUT"))
    with pytest.raises(InputError, match="_staging is a symbolic link"):
        store.remove(["_staging/notes"])
    (output / "_runs" / "mine").symlink_to(elsewhere)
    with pytest.raises(InputError, match="mine is a symbolic link"):
        store.remove(store.names(paths.run_folder("mine")))
    with pytest.raises(InputError, match="mine is a symbolic link"):
        remove_tree(*open_location(f"{output}/_runs/mine", "OUTPUT"))
    assert contents(elsewhere) == before


def test_links_in_a_folder_are_deleted_with_it(tmp_path: Path, elsewhere: Path) -> None:
    before = contents(elsewhere)
    folder = tmp_path / "staging" / "run"
    folder.mkdir(parents=True)
    (folder / "blocks").symlink_to(elsewhere)
    (folder / "notes").symlink_to(elsewhere / "notes")
    remove_tree(*open_location(str(folder), "OUTPUT"))
    assert not folder.exists() and contents(elsewhere) == before


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, empty."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.mark.parametrize("kind", ["link", "shared", "file"])
def test_a_journal_is_not_kept_in_a_folder_of_others(
    kind: str, temporary: Path, elsewhere: Path
) -> None:
    """Old files of the folder that a link leads to were deleted."""
    long_ago = time.time() - 2 * KEPT_SECONDS
    os.utime(elsewhere / "notes", (long_ago, long_ago))
    before = contents(elsewhere)
    place = temporary / f"detr-batch-{os.getuid()}"
    if kind == "link":
        place.symlink_to(elsewhere)
    elif kind == "file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o777)
    with pytest.raises(InputError, match=f"{place} must be a folder.*TMPDIR"):
        CrashJournal("session", 60.0)
    assert contents(elsewhere) == before


def test_a_journal_makes_its_folder_and_deletes_old_entries(
    temporary: Path, elsewhere: Path
) -> None:
    journal = CrashJournal("session", 3600.0)  # seconds, after which it ends this process
    journal.begin("batch")
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    (entry,) = folder.iterdir()
    long_ago = time.time() - 2 * KEPT_SECONDS
    os.utime(entry, (long_ago, long_ago))
    (folder / "link").symlink_to(elsewhere / "notes")
    os.utime(folder / "link", (long_ago, long_ago), follow_symlinks=False)
    CrashJournal("another", 60.0)
    journal.end("batch")
    assert not list(folder.iterdir())
    assert (elsewhere / "notes").exists()
