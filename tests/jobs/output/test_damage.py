"""Files of OUTPUT that are not as they were written: named, with exit code 1, and left alone."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from jobs.output import paths
from jobs.output.catalog import load_catalog
from jobs.output.log import checkpoint_to_bytes
from jobs.output.run_documents import read_document
from jobs.output.store import OutputStore
from jobs.output.views import connect
from jobs.report.report import report_of
from pipeline import dataflow
from pipeline.stages.publish import Part, group_into_parts
from pipeline.storage.lock import OLD_NAME
from tests.support.damage import DAMAGES, Damage, flip, warnings_of

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def leases(**changes: object) -> Damage:
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


# A lock has no digest: that of another token or time is one that somebody may have written.
LOCK_DAMAGES: dict[str, Damage] = {
    **{name: DAMAGES[name] for name in ("cut", "emptied", "[]")},
    **{f"bit 7 at {share}": flip(share, 7) for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)},
    "a lease of 1e12 s": leases(lease_seconds=1e12),
    "a lease of no time": leases(lease_seconds=0),
    "a lease that is true": leases(lease_seconds=True),
    "a lease that is no number": leases(lease_seconds=float("nan")),
    "an end that is none": leases(expires_at=float("inf")),
    "an end beyond all floats": leases(expires_at=10**400),
    "no token": leases(token=None),
    "no holder": leases(holder=[]),
    "null": lambda data: b"null",
}


def contents(output: Path) -> dict[str, bytes]:
    """All files of OUTPUT."""
    files = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


@dataclass
class Desk:
    """What a test says to the command line, and hears."""

    output: Path
    capsys: pytest.CaptureFixture[str]

    def refuses(self, damage: Damage, name: str, command: list[str]) -> str:
        """Damage a file, and hear that it is; afterwards it is whole again."""
        file = self.output / name
        whole = file.read_bytes() if file.exists() else b""
        file.write_bytes(damage(whole))
        before = contents(self.output)
        self.capsys.readouterr()
        assert main(command) == 1
        said = self.capsys.readouterr().err
        assert said.count("\n") == 1 and name in said, said
        assert contents(self.output) == before
        file.write_bytes(whole)
        return said


def found(folder: Path, name: str) -> list[str]:
    """What `import` takes: detections, and the options that go with them."""
    images = [{"id": 1, "file_name": f"{name}.jpg", "width": 100, "height": 80}]
    truth = {"images": images, "annotations": [], "categories": CATEGORIES}
    boxes = [{"image_id": 1, "category_id": 2, "bbox": [1, 2, ord(name), 10], "score": 0.5}]
    (folder / f"{name}-truth.json").write_text(json.dumps(truth))
    (folder / f"{name}.json").write_text(json.dumps(boxes))
    return [str(folder / f"{name}.json"), "--annotations", str(folder / f"{name}-truth.json")]


def import_into(output: Path, name: str) -> list[str]:
    detections, *options = found(output.parent, name)
    return ["import", detections, str(output), *options, "--model", "m"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OUTPUT of two runs."""
    output = tmp_path_factory.mktemp("imported") / "out"
    for name in ("a", "b"):
        assert main(import_into(output, name)) == 0
    return output


@pytest.fixture
def desk(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    shutil.copytree(imported, tmp_path / "out")
    return Desk(tmp_path / "out", capsys)


def name_of(output: Path, pattern: str) -> str:
    """The first file of OUTPUT that a pattern fits, below it."""
    return str(min(output.glob(pattern)).relative_to(output))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("document", ["entry", "manifest", "checkpoint"])
def test_documents_of_the_log(document: str, damage: str, desk: Desk) -> None:
    if document == "checkpoint":
        store = OutputStore(str(desk.output))
        catalog = load_catalog(store)
        catalog.state.manifests = catalog.manifests
        name = paths.checkpoint(catalog.state.number)
        store.write(name, checkpoint_to_bytes(catalog.state))
    elif document == "entry":
        name = paths.entry(2)
    else:
        name = name_of(desk.output, "_runs/*/manifest-*.json")
    for command in (["runs", str(desk.output)], import_into(desk.output, "c")):
        said = desk.refuses(DAMAGES[damage], name, command)
        assert "nothing was changed" in said or "upgrade it" in said
    assert main(import_into(desk.output, "c")) == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_plan_of_a_run_that_counts(damage: str, desk: Desk) -> None:
    name = name_of(desk.output, "_runs/*/plan-*.parquet")
    said = desk.refuses(DAMAGES[damage], name, import_into(desk.output, "c"))
    assert "put back what was there" in said
    assert main(import_into(desk.output, "c")) == 0


@pytest.mark.parametrize("damage", LOCK_DAMAGES)
@pytest.mark.parametrize("name", [paths.LOCK, paths.OLD_LOCK])
def test_lock(name: str, damage: str, desk: Desk) -> None:
    if (name, damage) == (paths.OLD_LOCK, "emptied"):
        return  # as a kill could leave it: tests/pipeline/storage/test_lock.py
    lock = {"token": "0" * 32, "holder": "h:1", "lease_seconds": 60.0, "expires_at": 1.0}
    (desk.output / name).write_text(json.dumps(lock))
    said = desk.refuses(LOCK_DAMAGES[damage], name, import_into(desk.output, "c"))
    assert "delete it if no other command writes this OUTPUT" in said
    (desk.output / name).unlink()
    assert main(import_into(desk.output, "c")) == 0
    assert json.loads((desk.output / paths.OLD_LOCK).read_text())["lease_seconds"] == 1e12


def test_the_old_lock_has_one_name() -> None:
    assert OLD_NAME == paths.OLD_LOCK


def write_lake(folder: Path) -> None:
    """Nine tars of two pictures each."""
    folder.mkdir()
    for number in range(9):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for index in range(2):
                pixels = np.random.default_rng(2 * number + index).integers(0, 255, (60, 80, 3))
                picture = folder.parent / f"{number}-{index}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(picture)
                archive.add(picture, picture.name)


def label_into(output: Path, weights: str = "random") -> list[str]:
    lake, options = str(output.parent / "lake"), ["--score-threshold", "0", "--precision", "fp32"]
    given = ["--model", "shapes-tiny", "--weights", weights, "--no-page", "--batch-size", "1"]
    return ["label", lake, str(output), *given, *options]


class Reached(BaseException):
    """A run came to the point from which on it would need a detector."""


@pytest.fixture
def unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """A run of `label` that was planned and no more; further ones come as far."""

    def reach(_: object, run: Any, *__: object) -> None:
        raise Reached(run.run_id)

    write_lake(tmp_path / "lake")
    monkeypatch.setattr("jobs.label.label._start_ray", lambda *_: None)
    monkeypatch.setattr("jobs.label.label.execute_run", reach)
    with pytest.raises(Reached):
        main(label_into(tmp_path / "out"))
    yield Desk(tmp_path / "out", capsys)


@pytest.mark.parametrize("document", ["plan.parquet", "run.json"])
def test_unfinished_run(document: str, unfinished: Desk) -> None:
    output = unfinished.output
    run_id = next((output / paths.STAGING).iterdir()).name
    name = name_of(output, f"_*/*/{document}")
    for damage in (*DAMAGES.values(), lambda data: b"{}"):
        said = unfinished.refuses(damage, name, label_into(output))
        assert f"delete {paths.staging(run_id)} of OUTPUT, and the same command plans anew" in said
    with pytest.raises(Reached, match=run_id):  # whole again, it is taken up
        main(label_into(output))
    (output / name).write_bytes(b"")
    shutil.rmtree(output / paths.staging(run_id))
    with pytest.raises(Reached, match=f"^(?!{run_id})"):
        main(label_into(output))


def test_record_without_a_digest_is_that_of_an_older_version(unfinished: Desk) -> None:
    (file,) = unfinished.output.glob("_runs/*/run.json")
    record = json.loads(file.read_text())
    del record["sha256"]
    file.write_text(json.dumps(record, indent=1))
    with pytest.raises(Reached, match=file.parent.name):
        main(label_into(unfinished.output))
    assert read_document(str(unfinished.output), file.parent.name, "run.json") == record


def rows(output: Path) -> list[tuple[Any, ...]]:
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
    """One that a rerun finds, in Ray tasks, and one that is damaged just before it is published."""
    write_lake(tmp_path / "lake")
    monkeypatch.setattr(dataflow, "BLOCK_BYTES", 1 << 16)
    calm, output = tmp_path / "calm", tmp_path / "out"
    assert main(label_into(calm, weights)) == 0
    with monkeypatch.context() as patch:
        patch.setattr("jobs.label.label.publish_run", interrupt)
        assert main(label_into(output, weights)) == 1
    first, *others = sorted(output.glob("_staging/*/blocks/*"))
    images = [pq.read_metadata(block).num_rows for block in others]
    assert len(images) > 1
    damage(first)

    def damage_then_parts(*given: Any) -> list[Part]:
        damage(others[0])
        return group_into_parts(*given)

    with monkeypatch.context() as patch:
        patch.setattr(dataflow, "FILES_PER_TASK", 1)
        patch.setattr("jobs.label.publication.group_into_parts", damage_then_parts)
        logged = warnings_of("pipeline.stages.staged", patch)
        assert main(label_into(output, weights)) == 1
    assert logged == [f"{first} was damaged and is removed: its images are computed again"]
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"detr-batch: the staged block {others[0].name} was damaged")
    assert "Run the same command again" in said
    assert not others[0].exists() and not list(output.glob("_runs/*/manifest*"))
    assert main(label_into(output, weights)) == 0
    assert rows(output) == rows(calm)
    assert report_of(str(output))["labelled_before"] == 18 - images[0]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def damage(file: Path) -> None:
    file.write_bytes(flip(0.5, 3)(file.read_bytes()))
