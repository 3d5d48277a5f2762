"""`detr-batch bench pipeline`: from JPEG files to Parquet on one machine, beside a plain script."""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from jobs.bench.measure import Measurement, interleaved, milliseconds, say_progress
from jobs.bench.peers import save_peer
from jobs.demo.scenes import render_scene
from jobs.output import paths
from jobs.output.views import connect
from jobs.report.reports import report_of
from pipeline.storage.errors import CommandFailed

OURS, PLAIN = "detr-batch label", "Ray Data and transformers"
SIZE = (1066, 800)  # width and height that the published models take, so nothing is resized
# Random weights score all images nearly alike (0.73 to 0.75). Errors are therefore relative to the
# range of the images' scores: answers to other images would be wrong by up to 1.
TOLERANCE = 0.25
FEWEST_IMAGES = 4

Scores = dict[str, float]  # file name -> best score of its image


def write_photos(folder: Path, images: int) -> None:
    """Write rendered scenes as JPEG files."""
    folder.mkdir()
    for index in range(images):
        scene = render_scene(np.random.default_rng(index), *SIZE)
        Image.fromarray(scene.pixels).save(folder / f"{index:05}.jpg", quality=90)


def _run(*command: str) -> float:
    """Return seconds of the whole command. CommandFailed, with its last line, if it fails."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-P", "-m", *command], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CommandFailed(f"{command[0]} failed: {reason}")
    return time.perf_counter() - began


def _ours(photos: Path, output: Path, options: list[str]) -> tuple[float, Scores]:
    command = ["label", str(photos), str(output), "--score-threshold", "0", *options]
    took = _run("jobs.cli", *command)
    rows = connect(str(output)).sql("SELECT uri, max_score FROM images").fetchall()
    return took, {Path(uri).name: score for uri, score in rows}


def _plain(photos: Path, output: Path, model: str, device: str) -> tuple[float, Scores]:
    took = _run("jobs.bench.plain_pipeline", str(photos), str(output), model, device)
    rows = pq.read_table(output, columns=["path", "scores"]).to_pylist()
    return took, {Path(row["path"]).name: float(max(row["scores"])) for row in rows}


def bench_pipeline(
    model: str, images: int, precision: str, device: str, seconds: float
) -> tuple[list[Measurement], dict[str, Any]]:
    """Label the same files with the same weights, in turn; also return the report of our last run.

    Times are those of the whole command, start-up included. CommandFailed, without any times, if
    the scores differ.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos", images)
        weights = folder / "peer.safetensors"
        save_peer(model, weights)
        options = ["--model", model, "--weights", str(weights), "--precision", precision]
        options += ["--device", device]
        outputs = (folder / f"out-{index:03}" for index in count())
        subjects: dict[str, Callable[[Path], tuple[float, Scores]]] = {
            OURS: lambda output: _ours(folder / "photos", output, options),
            PLAIN: lambda output: _plain(folder / "photos", output, model, device),
        }
        say_progress("running each pipeline once, to compare their answers")
        scores = {name: subject(next(outputs))[1] for name, subject in subjects.items()}
        error = difference(scores[OURS], scores[PLAIN])
        if not error <= TOLERANCE:
            raise CommandFailed(
                f"the best scores differ by {error:.2g} of their range: nothing is timed"
            )

        def timed(name: str) -> float:
            return subjects[name](next(outputs))[0]

        took = interleaved({name: partial(timed, name) for name in subjects}, seconds)
        ours = [place for place in folder.glob("out-*") if (place / paths.RUNS).is_dir()]
        report = report_of(str(max(ours)))
    return [
        Measurement(
            benchmark="pipeline",
            case=f"{model}, {images} JPEGs of {SIZE[1]} x {SIZE[0]}, start-up included",
            subject=name,
            batch=images,
            precision=precision if name == OURS else "fp32",
            **(spread := milliseconds(took[name])),
            images_per_second=1e3 * images / spread["p50_ms"],
            peak_memory_mib=None,
            error=error if name == OURS else 0.0,
        )
        for name in subjects
    ], report


def difference(found: Scores, expected: Scores) -> float:
    """Return the largest error of an image's best score, as a share of the expected scores' range.

    CommandFailed if one of the two lacks an image.
    """
    if found.keys() != expected.keys():
        raise CommandFailed(
            f"only one of the two labelled {sorted(found.keys() ^ expected.keys())}"
        )
    reach = max(expected.values()) - min(expected.values())
    return max(abs(found[name] - expected[name]) for name in expected) / reach


def stages_as_text(report: dict[str, Any]) -> str:
    """Describe where our last run's time went, and which stage limits it."""
    seconds = report["seconds_by_stage"]
    limiting = max(seconds, key=seconds.__getitem__)
    stages = ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items())
    steady = report["images_per_second_steady"]
    rate = "" if steady is None else f"; {steady:.2f} images/s from the first block on"
    return (
        f"  stages: {stages}; {limiting} limits; the detectors were idle for "
        f"{1 - report['device_use']:.0%} of the run, its start-up included{rate}"
    )
