"""`detr-batch bench`: the common parts of the subcommands, and what they print."""

import json
import sys
from dataclasses import asdict
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch

from jobs.bench.measure import RESULTS, Measurement, append, as_table
from jobs.bench.op import PEER, bench_op
from jobs.bench.options import (
    SIZE,
    BenchOptions,
    DeviceOptions,
    LaunchesOptions,
    ModelBenchOptions,
    PipelineBenchOptions,
    PlotOptions,
    ScaleOptions,
)
from model.named import SET_MODELS, set_config
from model.zoo import resolved_precision
from pipeline.storage.errors import InputError


def resolved_precision_of(options: DeviceOptions) -> str:
    """Return the precision to time in. InputError for a device that this machine lacks."""
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises an AssertionError
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {options.device}: it cannot be used here ({reason})") from error
    return resolved_precision(options.precision, options.device)


def add_to_results(options: BenchOptions, measured: list[Measurement]) -> None:
    """Append rows to the file of results."""
    append(measured, options.device, options.results or RESULTS)


def print_results(
    options: BenchOptions,
    measured: list[Measurement],
    baseline: str,
    details: dict[str, Any],
    text: str = "",
) -> None:
    """Print a table with `text` below it for people, or JSON with `details`."""
    if options.json:
        rows = [asdict(row) for row in measured]
        print(json.dumps({"measurements": rows, **details}, indent=1))
    else:
        print(as_table(measured, baseline) + text)


def op(options: BenchOptions) -> None:
    """Time the implementations of the attention."""
    measured = bench_op(options.device, resolved_precision_of(options), options.seconds)
    add_to_results(options, measured)
    print_results(options, measured, PEER, {})


def model(options: ModelBenchOptions) -> None:
    """Time whole models on images of one size.

    InputError for an unknown model, for options that make no sense, or without transformers.
    """
    refuse_without_transformers()
    from jobs.bench.model import bench_model

    names, batches = models_named(options.model), batches_given(options.batch_size or "1")
    size = options.size or SIZE
    sides = size.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) >= 32 for side in sides):
        raise InputError(f"--size {size!r}: give rows x columns from 32 up, such as {SIZE}")
    if options.images is not None:
        raise InputError("--images is for --sizes mix: give --batch-size and --seconds instead")
    rows, columns = map(int, sides)
    precision = resolved_precision_of(options)
    measured: list[Measurement] = []
    for name, batch in product(names, batches):
        print(f"{name}, batch {batch}", file=sys.stderr)
        found = bench_model(
            name, (rows, columns), batch, precision, options.device, options.seconds
        )
        add_to_results(options, found)
        measured += found
    print_results(options, measured, PEER, {})


def models_named(names: str) -> list[str]:
    """The models of `--model`: "all", or names with commas between. InputError for unknown ones."""
    found = list(SET_MODELS) if names == "all" else names.split(",")
    for name in found:
        set_config(name)
    return found


def batches_given(sizes: str) -> list[int]:
    """The numbers of `--batch-size`, with commas between. InputError for what is none."""
    found = sizes.split(",")
    if not all(batch.isdigit() and int(batch) for batch in found):
        raise InputError("--batch-size must be at least 1, or several such with commas between")
    return list(map(int, found))


def pipeline(options: PipelineBenchOptions) -> None:
    """Time `label` on photos of one size, beside a plain script.

    InputError as in `model`, or for a model that transformers lacks.
    """
    refuse_without_transformers()
    from jobs.bench.peers import VARIANTS
    from jobs.bench.pipeline import FEWEST_IMAGES, PLAIN, bench_pipeline, stages_as_text

    if options.model not in VARIANTS:
        raise InputError(f"--model {options.model!r}: choose one of {', '.join(VARIANTS)}")
    if options.images < FEWEST_IMAGES:
        raise InputError(f"--images must be at least {FEWEST_IMAGES}, to tell answers apart")
    measured, report = bench_pipeline(
        options.model,
        options.images,
        resolved_precision_of(options),
        options.device,
        options.seconds,
    )
    add_to_results(options, measured)
    print_results(options, measured, PLAIN, {"report": report}, "\n" + stages_as_text(report))


def scale(options: ScaleOptions) -> None:
    """Run the pipeline with simulated devices. InputError for numbers that make no sense."""
    from jobs.bench.scale import FEWEST_BLOCKS, IMAGES_PER_SHARD, as_text, bench_scale

    counts = options.detectors.split(",")
    if not all(count.isdigit() and int(count) for count in counts):
        raise InputError("--detectors must be at least 1, or several such with commas between")
    images = FEWEST_BLOCKS * IMAGES_PER_SHARD
    if options.device_seconds <= 0 or options.seconds < images * options.device_seconds:
        raise InputError(f"--seconds must be at least {images} times --device-seconds, above 0")
    found, measured = bench_scale(
        [int(count) for count in counts], options.device_seconds, options.seconds
    )
    append(measured, "cpu", options.results or RESULTS)
    if options.json:
        print(json.dumps([asdict(scaled) for scaled in found], indent=1))
    else:
        print(as_text(found, options.device_seconds))


def launches(options: LaunchesOptions) -> str:
    """Tune the Triton kernel, and describe the result. InputError without a GPU and Triton."""
    if find_spec("triton") is None:
        raise InputError("there is no kernel to tune: Triton is not installed")
    from jobs.bench.launches import bench_launches
    from model.ops.launches import TABLE

    precision = resolved_precision_of(options)
    return bench_launches(options.device, precision, options.seconds, options.table or TABLE)


def plot(options: PlotOptions) -> None:
    """Draw the results into a file. InputError as in `jobs.bench.plot.plot`."""
    from jobs.bench.plot import plot

    plot(options.results or RESULTS, options.picture)


def refuse_without_transformers() -> None:
    """InputError if the implementation that all models are compared with is not installed."""
    if find_spec("transformers") is None or find_spec("timm") is None:
        raise InputError("this compares with transformers: pip install '.[bench]'")
