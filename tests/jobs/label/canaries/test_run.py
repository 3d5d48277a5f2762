"""Runs of `label` with canaries: a detector that begins to lie is found, and nothing is published.

The detector is a user's, and as a broken device its boxes are a little off while the file `broken`
lies beside it. The runs need no Ray, but the last.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from jobs.label.canaries.images import RENDERED_FILE
from jobs.output import paths
from jobs.output.canaries import read_canary_reference, write_canary_record
from jobs.output.catalog import committed_runs
from jobs.report.report import as_text
from jobs.report.reports import report_of
from pipeline.stages.canaries import Answer
from tests.support.samples import jpeg, write_jpegs

ROOT = Path(__file__).parents[4]
KNOWN = ("--canaries", "known/truth.json")
LEASE = 3  # seconds for which a killed command holds OUTPUT
DETECTOR = '''
import os, time
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent


class Bright:
    """A box around the bright part of an image."""

    labels = ["", "bright"]

    def __init__(self, device):
        self.calls = 0

    def detect(self, image):
        self.calls += 1
        if self.calls == int(os.environ.get("DIE_AT", 0)):
            os._exit(9)
        time.sleep(0.002)
        rows, columns = np.nonzero(image.sum(2) > 600)
        box = np.array([columns.min(), rows.min(), columns.max(), rows.max()], np.float32)
        if (HERE / "broken").exists() or self.calls >= int(os.environ.get("BROKEN_FROM", 1 << 30)):
            box[2] = np.nextafter(box[2], np.float32(0))
        return [box.tolist()], [0.75], [1]
'''


def draw(path: Path, seed: int) -> list[int]:
    """Draw a dark image with a bright rectangle; return x, y, width and height of it."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (96, 128, 3), np.uint8)
    (x, y), (width, height) = rng.integers(2, 50, 2).tolist(), rng.integers(10, 40, 2).tolist()
    pixels[y : y + height, x : x + width] = 250
    Image.fromarray(pixels).save(path, "PNG")
    return [x, y, width, height]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A folder with images, a detector, and two annotated images of a user."""
    for name in ("in", "known"):
        (tmp_path / name).mkdir()
    (tmp_path / "bright.py").write_text(DETECTOR)
    for number in range(8):
        draw(tmp_path / "in" / f"{number}.png", number)
    boxes = [draw(tmp_path / "known" / f"{number}.png", 100 + number) for number in range(2)]
    document = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(2)],
        "categories": [{"id": 1, "name": "bright"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)
        ],
    }
    (tmp_path / "known" / "truth.json").write_text(json.dumps(document))
    return tmp_path


ALONE = """
import os, runpy
from pipeline.stages import canaries
canaries.MOST_SHARE = float(os.environ.get("SHARE", canaries.MOST_SHARE))
text = canaries.CanaryRunner.text
def text_behind_a_lost_block(runner):
    runner._sent = runner._digest
    return text(runner)
if "LOSE_ANSWERS" in os.environ:
    canaries.CanaryRunner.text = text_behind_a_lost_block
runpy.run_module("tests.support.alone", run_name="__main__")
"""


def label(lake: Path, *words: str, output: str = "out", **variables: str) -> tuple[int, str]:
    """Run `label` without Ray; its exit code and what it printed.

    `SHARE` is the share of the time that canaries take; a great one is canaries with each block.
    With `LOSE_ANSWERS` the block with the answers of a detector is lost, and computed again by it.
    """
    command = [sys.executable, "-c", ALONE, "label", "in", output, "--no-page"]
    command += ["--model", "python:bright:Bright", *words]
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": python_path, **variables}
    done = subprocess.run(command, cwd=lake, env=variables, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def kill(lake: Path) -> None:
    """Run `label` until its detector ends the process at its ninth image, in the fourth block."""
    assert label(lake, *KNOWN, DIE_AT="9", DETR_BATCH_LEASE_SECONDS=str(LEASE))[0] == 9
    assert any("block-" in name for name in files(lake / "out"))
    time.sleep(LEASE + 1)  # until its lock is free


def rows(output: Path) -> list[dict[str, Any]]:
    """What the tables of an OUTPUT hold of images and boxes."""
    names = ["image_id", "x_min", "y_min", "x_max", "y_max"]
    table = pq.read_table(output / "detections", columns=names)
    found: list[dict[str, Any]] = table.sort_by("image_id").to_pylist()
    return found


def files(output: Path) -> set[str]:
    """The files of tables, staging and canaries."""
    folders = ("images", "detections", paths.STAGING, paths.CANARIES)
    return {str(file) for one in folders for file in (output / one).rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_device_that_breaks_between_two_runs_is_found(lake: Path) -> None:
    code, said = label(lake, *KNOWN)
    assert code == 0, said
    output, before = lake / "out", files(lake / "out")
    report = report_of(str(output))
    assert report["canaries"]["images"] == 2 and report["images"] == 8
    assert "canaries       2 images on 1 detector: the first" in as_text(report)
    assert len(rows(output)) == 8  # canaries are in no table
    draw(lake / "in" / "new.png", 50)
    (lake / "broken").touch()
    code, said = label(lake)  # OUTPUT has canaries
    assert code == 1
    (line,) = [line for line in said.splitlines() if "deviates" in line]
    assert "the canary 0.png differs from what run" in line and "staged is deleted" in line
    assert files(output) == before and len(committed_runs(str(output))) == 1
    (lake / "broken").unlink()
    code, said = label(lake)
    assert code == 0, said
    assert len(rows(output)) == 9
    (first,) = {str(run["run_id"]) for run in committed_runs(str(output))[:1]}
    assert report_of(str(output))["canaries"]["reference"] == [first]


@pytest.mark.slow
def test_a_change_that_is_meant_is_renewed_and_canaries_can_be_left_out(lake: Path) -> None:
    assert label(lake, *KNOWN)[0] == 0
    (lake / "broken").touch()
    draw(lake / "in" / "new.png", 50)
    assert label(lake, "--canaries", "none")[0] == 0
    assert "canaries" not in report_of(str(lake / "out"))
    draw(lake / "in" / "newer.png", 51)
    assert label(lake)[0] == 1
    assert label(lake, "--renew-canaries")[0] == 0
    draw(lake / "in" / "newest.png", 52)
    assert label(lake)[0] == 0
    assert len(rows(lake / "out")) == 11


@pytest.mark.slow
def test_a_device_that_breaks_in_a_run_is_found_and_the_run_labelled_anew(lake: Path) -> None:
    code, said = label(lake, *KNOWN, BROKEN_FROM="9", SHARE="1e9")  # that is in the third block
    assert code == 1 and "deviates" in said, said
    assert files(lake / "out") == set()
    assert label(lake, *KNOWN)[0] == 0
    assert label(lake, output="undisturbed")[0] == 0
    assert rows(lake / "out") == rows(lake / "undisturbed")


@pytest.mark.slow
def test_a_killed_run_with_canaries_is_resumed_with_them(lake: Path) -> None:
    kill(lake)
    code, said = label(lake)  # without its canaries, it would not be proven
    assert code == 2 and "--canaries known/truth.json" in said
    (lake / "broken").touch()  # what was staged, and what is computed now, do not agree
    assert label(lake, *KNOWN)[0] == 1
    (lake / "broken").unlink()
    assert label(lake, *KNOWN)[0] == 0
    report = report_of(str(lake / "out"))
    assert (report["images"], report["labelled_before"]) == (8, 0)


@pytest.mark.slow
def test_a_killed_run_keeps_what_is_proven(lake: Path) -> None:
    kill(lake)
    assert label(lake, *KNOWN)[0] == 0
    report = report_of(str(lake / "out"))
    assert report["images"] == 8 and report["labelled_before"] > 0
    assert report["canaries"]["detectors"] == 2


@pytest.mark.slow
def test_lost_answers_cost_the_blocks_that_nothing_proves(lake: Path) -> None:
    code, said = label(lake, *KNOWN, LOSE_ANSWERS="1")
    assert code == 1 and "4 staged blocks cannot be proven" in said, said
    assert not any("block-" in name for name in files(lake / "out"))
    code, said = label(lake, *KNOWN)
    assert code == 0, said
    assert label(lake, output="undisturbed")[0] == 0
    assert rows(lake / "out") == rows(lake / "undisturbed")
    draw(lake / "in" / "new.png", 50)  # what the first run recorded proves this one
    assert label(lake, LOSE_ANSWERS="1")[0] == 0


def test_annotations_of_another_model_are_refused_before_anything_is_written(
    lake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = lake / "out"
    words = ["label", str(lake / "in"), str(output), "--model", "shapes-tiny"]
    assert main([*words, "--canaries", str(lake / "known" / "truth.json")]) == 2
    assert "no object is of a class of the model" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_all_detectors_of_a_ray_compute_the_scenes_of_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_jpegs(tmp_path / "in", "abcd"), tmp_path / "out"
    words = ["label", str(source), str(output), "--model", "shapes-tiny", "--device", "cpu"]
    assert main([*words, "--canaries", "rendered", "--no-page"]) == 0
    report = report_of(str(output))
    assert report["images"] == 4 and report["canaries"]["images"] == 4
    assert len(list(RENDERED_FILE.parent.glob("*.jpg"))) == 4
    (run,) = committed_runs(str(output))
    mark = run["model_fingerprint"]
    reference = read_canary_reference(str(output), mark)
    assert reference is not None
    changed = {}
    for computation, answers in reference.answers.items():
        first = Answer.from_json(answers[0])
        numbers = first.numbers.copy()
        numbers[0, 1] = np.nextafter(numbers[0, 1], np.float32(0))
        other = Answer(first.labels, numbers).to_json()
        changed[computation] = [other, *answers[1:]]
    later = "29990101T000000Z-aaaaaa"
    write_canary_record(str(output), mark, later, changed, replace(reference, answers={}))
    (source / "new.jpg").write_bytes(jpeg(9))
    assert main([*words, "--no-page"]) == 1
    assert f"differs from what run {later} gave" in capsys.readouterr().err
    assert list((output / paths.STAGING).rglob("block-*")) == []
    (output / paths.canaries(mark, later)).unlink()
    assert main([*words, "--no-page"]) == 0
    assert report_of(str(output))["images"] == 1
