"""`detr-batch bench scale`: the pipeline with more and more devices, which are simulated.

Each takes a fixed time an image and no CPU, so that reading, decoding, Ray and staging are measured
and not this machine's arithmetic: what they hold back of what the devices could do is what is lost.
"""

import io
import math
import os
import random
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import ray
from PIL import Image
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from jobs.bench.measure import FEWEST_ROUNDS, Measurement, milliseconds
from jobs.bench.simulated import SimulatedDetector
from jobs.cluster import start_ray
from jobs.label_options import LabelOptions
from jobs.scenes import render_scene
from model.zoo import named_model
from pipeline.blocks import open_work
from pipeline.dataflow import Detectors, FlowSettings, label_shards, read_back
from pipeline.plan import plan
from pipeline.schema import Receipt

SIZE = (400, 288)  # width and height of the pictures, which shapes-tiny takes as they are
IMAGES_PER_SHARD = 8  # two seconds of a device, so that blocks tell rates
SKIPPED = 0.15  # of the images at either end: pools fill and drain there
SAMPLE_SECONDS = 0.25


@dataclass
class Sample:
    """One run: what came out, and what it took of this machine."""

    images_per_second: float  # between the first and the last images
    driver_cpu: float  # of one core
    driver_mib: float  # at most
    store_mib: float  # bytes in Ray's object store, at most
    machine_cpu: float  # share of all cores, by whatever ran


@dataclass
class Scaled:
    """All runs with so many detectors."""

    detectors: int
    samples: list[Sample] = field(default_factory=list)

    def middle(self, figure: str) -> float:
        """The median of one of Sample's fields."""
        return float(median(getattr(sample, figure) for sample in self.samples))


def write_shards(folder: Path, images: int) -> None:
    """Tar shards of JPEG pictures; all are the same twenty, which decode alike."""
    pictures = []
    for seed in range(20):
        data = io.BytesIO()
        pixels = render_scene(np.random.default_rng(seed), *SIZE).pixels
        Image.fromarray(pixels).save(data, "JPEG", quality=90)
        pictures.append(data.getvalue())
    folder.mkdir()
    for start in range(0, images, IMAGES_PER_SHARD):
        with tarfile.open(folder / f"{start:07}.tar", "w") as archive:
            for index in range(start, min(start + IMAGES_PER_SHARD, images)):
                entry = tarfile.TarInfo(f"{index:07}.jpg")
                entry.size = len(pictures[index % len(pictures)])
                archive.addfile(entry, io.BytesIO(pictures[index % len(pictures)]))


class _Watch:
    """Looks at this process and at Ray's object store every so often."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.state = get_state_from_address(ray.get_runtime_context().gcs_address)
        self.rss = self.store = 0
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator["_Watch"]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def _look(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.rss = max(self.rss, self.process.memory_info().rss)
            stats = get_memory_info_reply(self.state).store_stats
            self.store = max(self.store, stats.object_store_bytes_used)


def bench_scale(
    detectors: list[int], device_seconds: float, seconds: float
) -> tuple[list[Scaled], list[Measurement]]:
    """Runs of about `seconds` with each number of detectors, in turn, at least FEWEST_ROUNDS.

    RuntimeError where an image is lost or comes twice: nothing is reported then.
    """
    cpus = max(os.cpu_count() or 1, *detectors) + 2  # Ray warns where many processes share few
    ray.init("local", num_cpus=cpus, log_to_driver=False, include_dashboard=False)
    start_ray(LabelOptions("", ""))
    found = [Scaled(count) for count in detectors]
    with TemporaryDirectory() as name:
        for scaled in found:
            shards = math.ceil(seconds / (device_seconds * IMAGES_PER_SHARD)) * scaled.detectors
            images = shards * IMAGES_PER_SHARD
            write_shards(Path(name) / f"in-{scaled.detectors}", images)
        for turn in range(FEWEST_ROUNDS):
            for scaled in random.sample(found, len(found)):
                source = Path(name) / f"in-{scaled.detectors}"
                output = Path(name) / f"out-{scaled.detectors}-{turn}"
                scaled.samples.append(_run(source, output, scaled.detectors, device_seconds))
    return found, [_measurement(scaled, device_seconds) for scaled in found]


def _run(source: Path, output: Path, detectors: int, device_seconds: float) -> Sample:
    shards = plan(str(source)).shards
    plan_url, staging = str(output / "plan.parquet"), str(output / "blocks")
    shards.put(plan_url)
    work, _ = open_work(shards, read_back(staging))
    cpus = os.cpu_count() or 1
    pool = Detectors(
        SimulatedDetector,
        (device_seconds,),
        fewest=detectors,
        most=detectors,
        num_cpus=0,
        num_gpus=0,
        images_per_call=IMAGES_PER_SHARD,
        memory=0,
    )
    resize = named_model("shapes-tiny").config().resize
    settings = FlowSettings(plan_url, staging, resize, pool, preparers=cpus, tasks=2 * cpus)
    receipts: list[Receipt] = []
    watch = _Watch()
    with watch.running():
        psutil.cpu_percent()
        began, used = time.perf_counter(), watch.cpu_seconds()
        receipts.extend(label_shards(work, settings))
        wall = time.perf_counter() - began
        machine = psutil.cpu_percent() / 100
        driver = (watch.cpu_seconds() - used) / wall
    _reconcile(receipts, read_back(staging).images)
    return Sample(_steady(receipts), driver, watch.rss / 2**20, watch.store / 2**20, machine)


def _reconcile(receipts: list[Receipt], staged: int) -> None:
    told = sum(receipt.images for receipt in receipts)
    failed = sum(sum(receipt.failed.values()) for receipt in receipts)
    if told != staged or failed:
        raise RuntimeError(f"{told} images were told of, {staged} are staged, {failed} failed")


def _steady(receipts: list[Receipt]) -> float:
    """Images a second, without those at either end: the slope of what was done over time.

    Devices that began together end their blocks together: from one block to another one would
    count steps of a stair.
    """
    receipts = sorted(receipts, key=lambda receipt: receipt.finished_at)
    done = np.cumsum([receipt.images for receipt in receipts])
    times = np.array([receipt.finished_at for receipt in receipts])
    middle = (done >= SKIPPED * done[-1]) & (done <= (1 - SKIPPED) * done[-1])
    slope, _ = np.polyfit(times[middle] - times[0], done[middle], 1)
    return float(slope)


def _measurement(scaled: Scaled, device_seconds: float) -> Measurement:
    rate = scaled.middle("images_per_second")
    took = [1 / sample.images_per_second for sample in scaled.samples]
    return Measurement(
        benchmark="scale",
        case=f"{scaled.detectors} simulated devices of {device_seconds:g} s an image",
        subject="detr-batch",
        batch=1,
        precision="simulated",
        **milliseconds(took),
        images_per_second=rate,
        peak_memory_mib=round(scaled.middle("driver_mib")),
        error=0.0,
    )


def as_text(found: list[Scaled], device_seconds: float) -> str:
    """A line a number of devices; "linear" is that of the fewest."""
    fewest = min(found, key=lambda scaled: scaled.detectors)
    alone = fewest.middle("images_per_second") / fewest.detectors
    lines = [
        f"{'devices':>7} {'images/s':>9} {'of linear':>9} {'busy':>6} {'driver':>18} {'store':>9} "
        f"{'machine':>8}"
    ]
    for scaled in found:
        each = scaled.middle("images_per_second") / scaled.detectors
        lines.append(
            f"{scaled.detectors:>7} {each * scaled.detectors:>9.2f} {each / alone:>9.1%} "
            f"{each * device_seconds:>6.1%} {scaled.middle('driver_cpu'):>5.0%} CPU "
            f"{scaled.middle('driver_mib'):>4.0f} MiB {scaled.middle('store_mib'):>5.0f} MiB "
            f"{scaled.middle('machine_cpu'):>8.0%}"
        )
    return "\n".join(lines)
