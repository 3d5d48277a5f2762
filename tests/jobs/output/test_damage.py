"""Damaged files of OUTPUT are named with exit code 1, and nothing is changed."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from jobs.label.log.lines import without_time
from jobs.output import paths
from jobs.output.catalog import load_catalog
from jobs.output.log import checkpoint_to_bytes
from jobs.output.run_documents import read_document
from jobs.output.store import OutputStore
from jobs.output.views import connect
from jobs.report.reports import report_of
from model.computation import Computation
from pipeline import dataflow
from pipeline.stages.publish import Part, group_into_parts
from pipeline.storage.lock import OLD_NAME
from tests.support.damage import DAMAGES, Damage, flip, warnings_of
from tests.support.parameters import others_slow

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def change_lock(**changes: object) -> Damage:
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


# A lock has no digest, so another token or time in it looks as if it had been written.
LOCK_DAMAGES: dict[str, Damage] = {
    **{name: DAMAGES[name] for name in ("cut", "emptied", "[]")},
    **{f"bit 7 at {share}": flip(share, 7) for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)},
    "a lease of 1e12 s": change_lock(lease_seconds=1e12),
    "a lease of no time": change_lock(lease_seconds=0),
    "a lease that is true": change_lock(lease_seconds=True),
    "a lease that is not a number": change_lock(lease_seconds=float("nan")),
    "an end that is infinite": change_lock(expires_at=float("inf")),
    "an end beyond all floats": change_lock(expires_at=10**400),
    "no token": change_lock(token=None),
    "no holder": change_lock(holder=[]),
    "null": lambda data: b"null",
}


def read_all_files(output: Path) -> dict[str, bytes]:
    """Read all files of OUTPUT."""
    files = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


@dataclass
class OutputTester:
    """An OUTPUT, and a check of how commands refuse its damaged files."""

    output: Path
    capsys: pytest.CaptureFixture[str]

    def check_refusal(self, damage: Damage, name: str, command: list[str]) -> str:
        """Damage a file, check that a command refuses it, repair it, and return the error."""
        file = self.output / name
        whole = file.read_bytes() if file.exists() else b""
        file.write_bytes(damage(whole))
        before = read_all_files(self.output)
        self.capsys.readouterr()
        assert main(command) == 1
        printed = self.capsys.readouterr().err
        assert printed.count("\n") == 1 and name in printed, printed
        assert read_all_files(self.output) == before
        file.write_bytes(whole)
        return printed


def write_detections(folder: Path, name: str) -> list[str]:
    """Write detections for `import`; return its arguments for them."""
    images = [{"id": 1, "file_name": f"{name}.jpg", "width": 100, "height": 80}]
    truth = {"images": images, "annotations": [], "categories": CATEGORIES}
    boxes = [{"image_id": 1, "category_id": 2, "bbox": [1, 2, ord(name), 10], "score": 0.5}]
    (folder / f"{name}-truth.json").write_text(json.dumps(truth))
    (folder / f"{name}.json").write_text(json.dumps(boxes))
    return [str(folder / f"{name}.json"), "--annotations", str(folder / f"{name}-truth.json")]


def import_command(output: Path, name: str) -> list[str]:
    detections, *options = write_detections(output.parent, name)
    return ["import", detections, str(output), *options, "--model", "m"]


@pytest.fixture(scope="module")
def imported_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OUTPUT of two imports."""
    output = tmp_path_factory.mktemp("imported") / "out"
    for name in ("a", "b"):
        assert main(import_command(output, name)) == 0
    return output


@pytest.fixture
def tester(
    imported_output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> OutputTester:
    shutil.copytree(imported_output, tmp_path / "out")
    return OutputTester(tmp_path / "out", capsys)


def find_file(output: Path, pattern: str) -> str:
    """Return the first file of OUTPUT that matches a pattern, relative to OUTPUT."""
    return str(min(output.glob(pattern)).relative_to(output))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("document", ["entry", "manifest", "checkpoint"])
def test_damaged_documents_of_the_log_are_refused(
    document: str, damage: str, tester: OutputTester
) -> None:
    if document == "checkpoint":
        store = OutputStore(str(tester.output))
        catalog = load_catalog(store)
        catalog.state.manifests = catalog.manifests
        name = paths.checkpoint(catalog.state.number)
        store.write(name, checkpoint_to_bytes(catalog.state))
    elif document == "entry":
        name = paths.entry(2)
    else:
        name = find_file(tester.output, "_runs/*/manifest-*.json")
    for command in (["runs", str(tester.output)], import_command(tester.output, "c")):
        printed = tester.check_refusal(DAMAGES[damage], name, command)
        assert "nothing was changed" in printed or "upgrade it" in printed
    assert main(import_command(tester.output, "c")) == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_of_a_run_that_counts_is_refused(damage: str, tester: OutputTester) -> None:
    name = find_file(tester.output, "_runs/*/plan-*.parquet")
    printed = tester.check_refusal(DAMAGES[damage], name, import_command(tester.output, "c"))
    assert "put back what was there" in printed
    assert main(import_command(tester.output, "c")) == 0


@pytest.mark.parametrize("damage", LOCK_DAMAGES)
@pytest.mark.parametrize("name", [paths.LOCK, paths.OLD_LOCK])
def test_a_damaged_lock_is_refused(name: str, damage: str, tester: OutputTester) -> None:
    if (name, damage) == (paths.OLD_LOCK, "emptied"):
        return  # a kill could leave this: tests/pipeline/storage/test_lock.py
    lock = {"token": "0" * 32, "holder": "h:1", "lease_seconds": 60.0, "expires_at": 1.0}
    (tester.output / name).write_text(json.dumps(lock))
    printed = tester.check_refusal(LOCK_DAMAGES[damage], name, import_command(tester.output, "c"))
    assert "delete it if no other command writes this OUTPUT" in printed
    (tester.output / name).unlink()
    assert main(import_command(tester.output, "c")) == 0
    assert json.loads((tester.output / paths.OLD_LOCK).read_text())["lease_seconds"] == 1e12


def test_the_old_lock_has_one_name() -> None:
    assert OLD_NAME == paths.OLD_LOCK


def write_lake(folder: Path) -> None:
    """Write nine tars of two images each."""
    folder.mkdir()
    for number in range(9):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for index in range(2):
                pixels = np.random.default_rng(2 * number + index).integers(0, 255, (60, 80, 3))
                file = folder.parent / f"{number}-{index}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(file)
                archive.add(file, file.name)


def label_command(output: Path, weights: str = "random") -> list[str]:
    lake, options = str(output.parent / "lake"), ["--score-threshold", "0", "--precision", "fp32"]
    arguments = ["--model", "shapes-tiny", "--weights", weights, "--no-page", "--batch-size", "1"]
    return ["label", lake, str(output), *arguments, *options]


class ReachedDetectors(BaseException):
    """Ends a run when it would start detectors."""


@pytest.fixture
def unfinished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[OutputTester]:
    """A run of `label` that stopped after planning; further commands stop there too."""

    def stop_run(_: object, run: Any, *__: object) -> None:
        raise ReachedDetectors(run.run_id)

    write_lake(tmp_path / "lake")
    placed = SimpleNamespace(computation=Computation("cpu", "fp32", "a CPU of this test"))
    monkeypatch.setattr("jobs.label.label._start_ray", lambda *_: placed)
    monkeypatch.setattr("jobs.label.label.execute_run", stop_run)
    with pytest.raises(ReachedDetectors):
        main(label_command(tmp_path / "out"))
    yield OutputTester(tmp_path / "out", capsys)


@pytest.mark.parametrize("document", others_slow(["plan.parquet", "run.json"]))
def test_damaged_documents_of_an_unfinished_run_are_refused(
    document: str, unfinished_run: OutputTester
) -> None:
    output = unfinished_run.output
    run_id = next((output / paths.STAGING).iterdir()).name
    name = find_file(output, f"_*/*/{document}")
    for damage in (*DAMAGES.values(), lambda data: b"{}"):
        printed = unfinished_run.check_refusal(damage, name, label_command(output))
        assert (
            f"delete {paths.staging(run_id)} of OUTPUT, and the same command plans anew" in printed
        )
    with pytest.raises(ReachedDetectors, match=run_id):  # the repaired run is resumed
        main(label_command(output))
    (output / name).write_bytes(b"")
    shutil.rmtree(output / paths.staging(run_id))
    with pytest.raises(ReachedDetectors, match=f"^(?!{run_id})"):
        main(label_command(output))


def test_a_record_without_a_digest_is_that_of_an_older_version(
    unfinished_run: OutputTester,
) -> None:
    (file,) = unfinished_run.output.glob("_runs/*/run.json")
    record = json.loads(file.read_text())
    del record["sha256"]
    file.write_text(json.dumps(record, indent=1))
    with pytest.raises(ReachedDetectors, match=file.parent.name):
        main(label_command(unfinished_run.output))
    assert read_document(str(unfinished_run.output), file.parent.name, "run.json") == record


def read_boxes(output: Path) -> list[tuple[Any, ...]]:
    with connect(str(output)) as connection:
        columns = "image_id, label_id, round(score, 3), round(x_min), round(y_max)"
        return connection.sql(f"SELECT {columns} FROM detections ORDER BY ALL").fetchall()


@pytest.mark.slow
def test_damaged_blocks_are_computed_again(
    local_ray: None,
    weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A rerun finds one damaged block in Ray tasks; another is damaged just before publishing."""
    write_lake(tmp_path / "lake")
    monkeypatch.setattr(dataflow, "CPU_BLOCK_BYTES", 1 << 16)
    calm, output = tmp_path / "calm", tmp_path / "out"
    assert main(label_command(calm, weights)) == 0
    with monkeypatch.context() as patch:
        patch.setattr("jobs.label.label.publish_run", interrupt)
        assert main(label_command(output, weights)) == 1
    first, *others = sorted(output.glob("_staging/*/blocks/*"))
    images = [pq.read_metadata(block).num_rows for block in others]
    assert len(images) > 1
    damage_file(first)

    def damage_and_group(*arguments: Any) -> list[Part]:
        damage_file(others[0])
        return group_into_parts(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(dataflow, "FILES_PER_TASK", 1)
        patch.setattr("jobs.label.publication.group_into_parts", damage_and_group)
        logged = warnings_of("pipeline.stages.staged", patch)
        assert main(label_command(output, weights)) == 1
    assert logged == [f"{first} was damaged and is removed: its images are computed again"]
    printed = without_time(capsys.readouterr().err.splitlines()[-1])
    assert printed.startswith(f"detr-batch: the staged block {others[0].name} was damaged")
    assert "Run the same command again" in printed
    assert not others[0].exists() and not list(output.glob("_runs/*/manifest*"))
    assert main(label_command(output, weights)) == 0
    assert read_boxes(output) == read_boxes(calm)
    assert report_of(str(output))["labelled_before"] == 18 - images[0]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def damage_file(file: Path) -> None:
    file.write_bytes(flip(0.5, 3)(file.read_bytes()))
