"""OUTPUTs of versions before the log of commits; the old code itself writes them here."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.log_writer import LogWriter
from tests.support.tables import rows

OLD = "d1e3c29"  # 0.1.0
ROOT = Path(__file__).parents[3]
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.fixture(scope="module")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    archive = subprocess.run(
        ["git", "archive", OLD, "jobs", "model", "pipeline", "infra"], cwd=ROOT, capture_output=True
    )
    if archive.returncode:
        pytest.skip(f"this checkout has no commit {OLD}: it was fetched without its history")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def run_old_version(code: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, cwd=code, capture_output=True, text=True)


def write_detections(folder: Path, name: str, boxes: int) -> list[str]:
    """Write files for `import`; return the arguments that name them."""
    images = [{"id": 1, "file_name": f"{name}.jpg", "width": 100, "height": 80}]
    truth = {"images": images, "annotations": [], "categories": CATEGORIES}
    found = [
        {"image_id": 1, "category_id": 1 + k % 2, "bbox": [k, 2, 10, 10], "score": 0.9 - k / 10}
        for k in range(boxes)
    ]
    for kind, document in (("truth", truth), ("found", found)):
        (folder / f"{name}-{kind}.json").write_text(json.dumps(document))
    annotations = str(folder / f"{name}-truth.json")
    return [str(folder / f"{name}-found.json"), "--annotations", annotations, "--model", "m"]


def import_command(output: Path, found: list[str]) -> list[str]:
    return ["import", found[0], str(output), *found[1:]]


BOXES = "SELECT image_id, count(*) FROM latest GROUP BY ALL ORDER BY ALL"


def test_runs_of_an_old_version_are_adopted_and_it_can_write_no_more(
    old_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    done = run_old_version(old_code, *import_command(output, write_detections(tmp_path, "a", 2)))
    assert done.returncode == 0, done.stderr
    before = sorted(path for path in output.rglob("*"))
    assert rows(output, BOXES) == [("a.jpg", 2)]
    assert main(["runs", str(output), "--verify"]) == 0
    assert sorted(path for path in output.rglob("*")) == before  # reading changes nothing
    assert main(import_command(output, write_detections(tmp_path, "b", 3))) == 0
    assert rows(output, BOXES) == [("a.jpg", 2), ("b.jpg", 3)]
    ids = rows(output, "SELECT DISTINCT run, run_id FROM detections ORDER BY ALL")
    assert len(ids) == 2 and all(run == run_id for run, run_id in ids)
    capsys.readouterr()
    assert main(["runs", str(output), "--verify"]) == 0
    refused = run_old_version(old_code, *import_command(output, write_detections(tmp_path, "c", 1)))
    assert refused.returncode == 2
    assert "detr-batch 0.2 or newer" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert main(["compact", str(output)]) == 0
    assert rows(output, BOXES) == [("a.jpg", 2), ("b.jpg", 3)]
    assert main(["runs", str(output), "--verify"]) == 0


@pytest.mark.slow
def test_runs_that_an_old_version_compacted_stay_compacted(old_code: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name in ("a", "b"):  # the file has one name, so it is one INPUT
        found = write_detections(tmp_path, "x", 2 if name == "a" else 3)
        assert run_old_version(old_code, *import_command(output, found)).returncode == 0
    assert run_old_version(old_code, "compact", str(output)).returncode == 0
    catalog = read_catalog(str(output))
    assert [run["compacts"] for run in catalog.committed_runs()] == [True]
    assert len(catalog.labelling_runs()) == 2
    for boxes in (2, 3):  # both are known, though the plan of the merged run has only the newer
        assert main(import_command(output, write_detections(tmp_path, "x", boxes))) == 0
    assert len(read_catalog(str(output)).labelling_runs()) == 2
    assert main(import_command(output, write_detections(tmp_path, "b", 1))) == 0
    catalog = read_catalog(str(output))
    assert [run["compacts"] for run in catalog.committed_runs()] == [True, False]
    assert len(catalog.labelling_runs()) == 3


@pytest.mark.slow
def test_an_adoption_that_was_killed_is_repeated(
    old_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed between the lock that old versions respect and the first entry."""
    output = tmp_path / "out"
    assert (
        run_old_version(
            old_code, *import_command(output, write_detections(tmp_path, "a", 2))
        ).returncode
        == 0
    )

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LogWriter, "fence", kill)
        assert main(import_command(output, write_detections(tmp_path, "b", 3))) == 1
    assert rows(output, BOXES) == [("a.jpg", 2)]
    refused = run_old_version(old_code, *import_command(output, write_detections(tmp_path, "c", 1)))
    assert refused.returncode == 2
    assert main(import_command(output, write_detections(tmp_path, "b", 3))) == 0
    assert rows(output, BOXES) == [("a.jpg", 2), ("b.jpg", 3)]


def test_an_output_that_an_old_version_writes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    lock = {"token": "t", "holder": "old:1", "lease_seconds": 60.0, "expires_at": time.time() + 50}
    (output / paths.OLD_LOCK).write_text(json.dumps(lock))
    assert main(import_command(output, write_detections(tmp_path, "a", 2))) == 2
    assert "is being written by old:1" in capsys.readouterr().err
    assert sorted(path.name for path in output.iterdir()) == [paths.OLD_LOCK]
    shutil.rmtree(output)
