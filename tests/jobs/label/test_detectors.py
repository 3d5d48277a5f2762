"""Detectors of other kinds label photos from a folder, a tar and Parquet, killed and resumed."""

import os
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.label.label import label
from jobs.label.options import LabelOptions
from jobs.output import paths
from jobs.output.views import connect
from pipeline.storage.errors import CommandFailed, InputError
from tests.support.detectors import OWN, model_of_kind

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def rows(output: Path) -> dict[str, Any]:
    """Status and boxes of each image, by the last part of its name."""
    with closing(connect(str(output))) as database:
        boxes = database.sql(
            "SELECT regexp_extract(image_id, '[^/#]+$'), list({'label': label_id, 'score': score, "
            "'x': x_min, 'y': y_min, 'x_': x_max, 'y_': y_max} ORDER BY detection) "
            "FROM detections GROUP BY 1"
        ).fetchall()
        images = database.sql(
            "SELECT regexp_extract(image_id, '[^/#]+$'), status FROM images"
        ).fetchall()
    found = dict(boxes)
    return {name.removesuffix(".jpg"): (status, found.get(name)) for name, status in images}


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("kind", ["detr", "faster-rcnn", "hf"])
def test_rows_are_equal_however_photos_are_packed(kind: str, folder: Path, testdata: Path) -> None:
    photos = sorted((testdata / "coco" / "images").rglob("*.jpg"))
    assert len(photos) == 55
    photos = photos[:6] if kind == "faster-rcnn" else photos  # it takes seconds for each
    lake = folder / "lake"
    lake.mkdir()
    for photo in photos:
        (lake / photo.name).write_bytes(photo.read_bytes())
    model, weights = model_of_kind(kind, folder)
    output = iter(folder / f"out-{number}" for number in range(9))

    def options(source: Path, target: Path) -> LabelOptions:
        return LabelOptions(
            str(source), str(target), model=model, weights=weights, score_threshold=0.0,
            precision="fp32", page=False,
        )  # fmt: skip

    def labelled(source: Path) -> dict[str, Any]:
        target = next(output)
        assert label(options(source, target)) == 0
        return rows(target)

    expected = labelled(lake)
    assert len(expected) == len(photos)
    assert {status for status, _ in expected.values()} == {"ok"}
    # A random YOLOS takes some photos for its number 0, which stands for no class.
    assert sum(bool(boxes) for _, boxes in expected.values()) > len(photos) / 2
    with tarfile.open(folder / "one.tar", "w") as archive:
        for photo in reversed(photos):
            archive.add(photo, photo.name)
    assert labelled(folder / "one.tar") == expected
    table = {"id": [p.stem for p in photos], "image": [p.read_bytes() for p in photos]}
    pq.write_table(pa.table(table), folder / "photos.parquet", row_group_size=9)
    assert labelled(folder / "photos.parquet") == expected

    killed = next(output)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.label.label.publish_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            label(options(lake, killed))
    (plan,) = killed.glob("_staging/*/plan.parquet")
    for block in sorted((plan.parent / "blocks").iterdir())[::2]:
        block.unlink()
    (killed / paths.LOCK).unlink(missing_ok=True)
    assert label(options(lake, killed)) == 0
    assert rows(killed) == expected


def run_label(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run `label` in a folder, on a Ray of its own: that is where a user's module may lie."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "jobs.cli", "label", *words, "--no-page"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_a_module_in_the_folder_of_the_command_labels(tmp_path: Path, testdata: Path) -> None:
    model, _ = model_of_kind("python", tmp_path)
    (tmp_path / "outside.py").write_text(OWN.replace("min(width, x + 9)", "width + 700"))
    photos = testdata / "coco" / "images" / "val2017"
    done = run_label(tmp_path, str(photos), "out", "--model", model)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "out")
    assert len(found) == 55 and {status for status, _ in found.values()} == {"ok"}
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        for photo in sorted(photos.iterdir(), reverse=True):
            archive.add(photo, photo.name)
    assert run_label(tmp_path, "one.tar", "of-tar", "--model", model).returncode == 0
    assert rows(tmp_path / "of-tar") == found
    again = run_label(tmp_path, str(photos), "out", "--model", model)
    assert again.returncode == 0 and "nothing new" in again.stdout + again.stderr
    unnamed = run_label(tmp_path, str(photos), "out")
    assert unnamed.returncode == 2 and "give --model again" in unnamed.stderr
    wrong = run_label(tmp_path, str(photos), "wrong", "--model", "python:outside:Brightest")
    assert wrong.returncode == 3
    with closing(connect(str(tmp_path / "wrong"))) as database:
        errors = database.sql("SELECT DISTINCT status, error FROM images").fetchall()
    assert {status for status, _ in errors} == {"detector_error"}
    assert all("python:outside:Brightest: it returned a box outside" in text for _, text in errors)


def label_alone(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Start `label` without Ray in a folder. Nobody waits for the lock of a killed one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DETR_BATCH_LEASE_SECONDS": "2"}
    command = [sys.executable, "-m", "tests.support.alone", "label", *words, "--no-page"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def packed(kind: str, photos: list[Path], folder: Path) -> str:
    """Photos as one of three kinds of INPUT; its name in the folder."""
    if kind == "tar":
        with tarfile.open(folder / "lake.tar", "w") as archive:
            for photo in photos:
                archive.add(photo, photo.name)
        return "lake.tar"
    if kind == "parquet":
        table = {"id": [p.stem for p in photos], "image": [p.read_bytes() for p in photos]}
        pq.write_table(pa.table(table), folder / "lake.parquet", row_group_size=4)
        return "lake.parquet"
    (folder / "lake").mkdir()
    for photo in photos:
        (folder / "lake" / photo.name).write_bytes(photo.read_bytes())
    return "lake"


@pytest.mark.parametrize("form", ["folder", "tar", "parquet"])
@pytest.mark.parametrize("kind", ["python", "hf"])
def test_a_killed_run_of_another_detector_is_taken_up(
    kind: str, form: str, tmp_path: Path, testdata: Path
) -> None:
    model, _ = model_of_kind(kind, tmp_path)
    if kind == "python":  # it would be done before anybody could kill it
        own = tmp_path / "brightest.py"
        own.write_text(
            own.read_text().replace("        boxes,", "        time.sleep(0.2)\n        boxes,")
        )
        own.write_text("import time\n" + own.read_text())
    photos = sorted((testdata / "coco" / "images").rglob("*.jpg"))[:20]
    words = [packed(form, photos, tmp_path), "--model", model, "--score-threshold", "0"]
    whole = label_alone(tmp_path, words[0], "whole", *words[1:])
    said, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, said
    expected = rows(tmp_path / "whole")
    assert len(expected) == 20 and sum(bool(boxes) for _, boxes in expected.values()) > 10

    killed = label_alone(tmp_path, words[0], "killed", *words[1:])
    until = time.monotonic() + 90
    while len(list((tmp_path / "killed").glob("_staging/*/blocks/*.parquet"))) < 3:
        assert killed.poll() is None and time.monotonic() < until, "it was not to be killed"
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert len(list((tmp_path / "killed").glob("_staging/*/blocks/*.parquet"))) < 10
    again = label_alone(tmp_path, words[0], "killed", *words[1:])
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and "of a command that was cut off is finished first" in said
    assert rows(tmp_path / "killed") == expected


@pytest.mark.usefixtures("local_ray")
def test_workers_that_lack_the_module_refuse_in_one_line(folder: Path, testdata: Path) -> None:
    """A Ray that runs already starts workers elsewhere."""
    model, _ = model_of_kind("python", folder)
    source = str(testdata / "coco" / "images")
    options = LabelOptions(source, str(folder / "out"), model=model, limit=2)
    with pytest.raises(CommandFailed, match="there is no module 'brightest'"):
        label(options)


def test_a_precision_that_is_not_offered_ends_before_anything_is_written(
    folder: Path, testdata: Path
) -> None:
    options = LabelOptions(
        str(testdata / "coco" / "images"), str(folder / "out"), model="detr", weights="random",
        precision="int8",
    )  # fmt: skip
    with pytest.raises((ValueError, InputError), match="detr has no precision 'int8'"):
        label(options)
    assert not (folder / "out").exists()
