"""The benches of mixed sizes as commands: their options, and what they print."""

import sys
from itertools import product
from typing import Any

from jobs.bench.gpu.fill import fill_as_text
from jobs.bench.measure import Measurement
from jobs.bench.mix.model import MixRequest, bench_model_on_mix
from jobs.bench.mix.pipeline import bench_pipeline_on_mix
from jobs.bench.options import ModelBenchOptions, PipelineBenchOptions
from jobs.bench.pipeline import OURS, stages_as_text
from jobs.bench.subjects import (
    add_to_results,
    batches_given,
    models_named,
    print_results,
    resolved_precision_of,
)
from model.named import set_config
from pipeline.storage.errors import InputError

IMAGES, GPU_IMAGES = 24, 1600


def model_on_mix(options: ModelBenchOptions) -> None:
    """Time detectors on images of mixed sizes. InputError for options that make no sense."""
    on_gpu = options.device != "cpu"
    names = models_named(options.model)
    if options.size is not None:
        raise InputError("--size is for --sizes one: a mix has the sizes of COCO's photos")
    counts: list[int | None] = [None]
    if options.batch_size is not None:
        counts = [*batches_given(options.batch_size)]
        if not on_gpu:
            raise InputError("--batch-size with --sizes mix is for GPUs: CPUs take images alone")
    images = (GPU_IMAGES if on_gpu else IMAGES) if options.images is None else options.images
    _refuse_fewer_than_one(images)
    precision = resolved_precision_of(options)
    measured: list[Measurement] = []
    for name, count in product(names, counts):
        print(f"{name}, a mix of sizes", file=sys.stderr)
        request = MixRequest(name, precision, options.device, images, count)
        found = [bench_model_on_mix(request, options.seconds)]
        add_to_results(options, found)
        measured += found
    text = "".join(f"\n  {m.case}: {_fill_and_rate(m)}" for m in measured)
    print_results(options, measured, OURS, {}, text)


def pipeline_on_mix(options: PipelineBenchOptions) -> None:
    """Time `label` on photos of mixed sizes. InputError as in `model_on_mix`."""
    set_config(options.model)
    _refuse_fewer_than_one(options.images)
    precision = resolved_precision_of(options)
    if options.device not in ("cpu", "cuda"):
        raise InputError(
            f"`label` takes the first GPU, not {options.device}: set CUDA_VISIBLE_DEVICES, and "
            "give --device cuda"
        )
    measured, report = bench_pipeline_on_mix(
        options.model, options.images, precision, options.device, options.seconds
    )
    add_to_results(options, [measured])
    lines = ["", f"  {_fill_and_rate(measured)}", stages_as_text(report), _startup(report)]
    print_results(options, [measured], OURS, {"report": report}, "\n".join(lines))


def _refuse_fewer_than_one(images: int) -> None:
    if images < 1:
        raise InputError("--images must be at least 1")


def _fill_and_rate(measured: Measurement) -> str:
    return f"{measured.images_per_second:.2f} images/s, {fill_as_text(measured.details)}"


def _startup(report: dict[str, Any]) -> str:
    """Describe what the start-up of a run consists of."""
    parts = ", ".join(f"{name} {took:.1f} s" for name, took in report["startup_parts"].items())
    return f"  start-up: {report['startup_seconds']:.1f} s ({parts})"
