"""`detr-batch bench`: what the subcommands have in common, and what they print."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch

from jobs.bench.measure import RESULTS, Measurement, append, as_table
from jobs.bench.op import PEER, bench_op
from model.zoo import MODELS, named_model, resolved_precision


@dataclass(frozen=True)
class BenchOptions:
    """What all subjects take."""

    precision: str
    device: str
    seconds: float
    results: Path | None  # None: RESULTS
    json: bool

    def resolved_precision(self) -> str:
        """ValueError for a device that this machine lacks."""
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"--device {self.device}: it cannot be used here ({reason})"
            ) from error
        return resolved_precision(self.precision, self.device)

    def keep(self, measured: list[Measurement]) -> None:
        """Add to the results."""
        append(measured, self.device, self.results or RESULTS)

    def say(
        self, measured: list[Measurement], baseline: str, details: dict[str, Any], text: str = ""
    ) -> None:
        """Print for people, with `text` below, or with `details` as JSON."""
        if self.json:
            rows = [asdict(row) for row in measured]
            print(json.dumps({"measurements": rows, **details}, indent=1))
        else:
            print(as_table(measured, baseline) + text)


def op(options: BenchOptions) -> None:
    """Time the implementations of the attention."""
    measured = bench_op(options.device, options.resolved_precision(), options.seconds)
    options.keep(measured)
    options.say(measured, PEER, {})


def model(options: BenchOptions, model: str, size: str, batch_size: str) -> None:
    """Time whole models; `model` ("all" too) and `batch_size` may be several, with commas between.

    ValueError for one that there is not, or without transformers.
    """
    _refuse_without_transformers()
    from jobs.bench.model import bench_model

    names = list(MODELS) if model == "all" else model.split(",")
    for name in names:
        named_model(name)
    sides = size.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) >= 32 for side in sides):
        raise ValueError(f"--size {size!r}: give rows x columns from 32 up, such as 800x1066")
    batches = batch_size.split(",")
    if not all(batch.isdigit() and int(batch) for batch in batches):
        raise ValueError("--batch-size must be at least 1, or several such with commas between")
    rows, columns = map(int, sides)
    precision = options.resolved_precision()
    measured: list[Measurement] = []
    for name, batch in product(names, map(int, batches)):
        print(f"{name}, batch {batch}", file=sys.stderr)
        found = bench_model(
            name, (rows, columns), batch, precision, options.device, options.seconds
        )
        options.keep(found)
        measured += found
    options.say(measured, PEER, {})


def pipeline(options: BenchOptions, model: str, images: int) -> None:
    """Time `label` as a whole. ValueError as `model`, and for one that transformers lacks."""
    _refuse_without_transformers()
    from jobs.bench.peers import VARIANTS
    from jobs.bench.pipeline import FEWEST_IMAGES, PLAIN, bench_pipeline, stages_as_text

    if model not in VARIANTS:
        raise ValueError(f"--model {model!r}: choose one of {', '.join(VARIANTS)}")
    if images < FEWEST_IMAGES:
        raise ValueError(f"--images must be at least {FEWEST_IMAGES}, to tell answers apart")
    precision = options.resolved_precision()
    measured, report = bench_pipeline(model, images, precision, options.device, options.seconds)
    options.keep(measured)
    options.say(measured, PLAIN, {"report": report}, "\n" + stages_as_text(report))


def scale(
    detectors: str, device_seconds: float, seconds: float, results: Path | None, for_programs: bool
) -> None:
    """Run the pipeline with simulated devices. ValueError for numbers that make no sense."""
    from jobs.bench.scale import FEWEST_BLOCKS, IMAGES_PER_SHARD, as_text, bench_scale

    counts = detectors.split(",")
    if not all(count.isdigit() and int(count) for count in counts):
        raise ValueError("--detectors must be at least 1, or several such with commas between")
    images = FEWEST_BLOCKS * IMAGES_PER_SHARD
    if device_seconds <= 0 or seconds < images * device_seconds:
        raise ValueError(f"--seconds must be at least {images} times --device-seconds, above 0")
    found, measured = bench_scale([int(count) for count in counts], device_seconds, seconds)
    append(measured, "cpu", results or RESULTS)
    if for_programs:
        print(json.dumps([asdict(scaled) for scaled in found], indent=1))
    else:
        print(as_text(found, device_seconds))


def launches(device: str, precision: str, seconds: float, table: Path | None) -> str:
    """Tune the Triton kernel; what was chosen, for people. ValueError without a GPU and Triton."""
    if find_spec("triton") is None:
        raise ValueError("there is no kernel to tune: Triton is not installed")
    from jobs.bench.launches import bench_launches
    from model.ops.launches import TABLE

    precision = BenchOptions(precision, device, seconds, None, False).resolved_precision()
    return bench_launches(device, precision, seconds, table or TABLE)


def plot(picture: Path, results: Path | None) -> None:
    """Draw the results into a file. ValueError as `jobs.bench.plot.plot`."""
    from jobs.bench.plot import plot

    plot(results or RESULTS, picture)


SUBJECTS: dict[str, Callable[..., None]] = {"op": op, "model": model, "pipeline": pipeline}


def _refuse_without_transformers() -> None:
    if find_spec("transformers") is None or find_spec("timm") is None:
        raise ValueError("this compares with transformers: pip install 'detr-batch[bench]'")
