"""`detr-batch bench model --sizes mix`: a detector, fed as in the pipeline."""

import math
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from jobs.bench.detectors import OURS, has_peer, peak_memory
from jobs.bench.gpu.context import Context
from jobs.bench.gpu.gates import Gate, refuse_wrong
from jobs.bench.gpu.mix import Mix
from jobs.bench.measure import Measurement, interleaved, milliseconds
from model.named import RANDOM
from pipeline.stages.detect import CPU_THREADS
from pipeline.storage.errors import CommandFailed

GPU_WARM_UP = 2  # passes, after which each form has been recorded


@dataclass(frozen=True)
class MixRequest:
    """A detector, and the number of images of COCO's sizes that it shall label."""

    model: str
    precision: str
    device: str
    images: int
    count: int | None  # images of a batch on a GPU; None: the detector's own number


@dataclass(frozen=True)
class Timed:
    """The passes of a detector over all images."""

    took: list[float]  # seconds of each pass
    count: int  # places of a batch
    memory: int | None  # the most that the process had, in MiB, with the images
    details: dict[str, Any]


def weights_for(model: str) -> str | None:
    """Random weights for published models; None, which is its own, for the packaged one."""
    return RANDOM if has_peer(model) else None


def checked_error(model: str, precision: str, device: str) -> float:
    """The error of the detector as the pipeline runs it. Wrong if it is too large."""
    with TemporaryDirectory() as folder:
        context = Context("gates", Path(folder), device, False, math.inf)
        error = refuse_wrong(context, Gate(model, precision, padded=context.on_gpu))
    if context.on_gpu:
        torch.cuda.empty_cache()  # the gate filled memory, which the timed process needs
    return error


def bench_model_on_mix(request: MixRequest, seconds: float) -> Measurement:
    """Check the detector, then time passes over all images in a process of its own.

    Wrong, without any times, if the detector is wrong.
    """
    error = checked_error(request.model, request.precision, request.device)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            timed = pool.submit(_time_passes, request, seconds).result()
        except BrokenProcessPool as broken:
            raise CommandFailed(f"the process of {OURS} ended") from broken
    return Measurement(
        benchmark="model",
        case=f"{request.model}, {request.images} images of COCO's sizes",
        subject=OURS,
        batch=timed.count,
        precision=request.precision,
        **(spread := milliseconds(timed.took)),
        images_per_second=1e3 * request.images / spread["p50_ms"],
        peak_memory_mib=timed.memory,
        error=error,
        details=timed.details,
    )


def _time_passes(request: MixRequest, seconds: float) -> Timed:
    model, device = request.model, request.device
    mix = Mix(model, weights_for(model), request.precision, device, request.images, request.count)
    on_gpu = device != "cpu"
    for _ in range(GPU_WARM_UP if on_gpu else 1):
        mix.label()
    took = interleaved({OURS: mix.label}, seconds)[OURS]
    how = {"calls": mix.calls} if on_gpu else {"threads": CPU_THREADS}
    count = mix.detector.predictor.count
    return Timed(took, count, peak_memory(device), {**mix.fill.describe(), **how})
