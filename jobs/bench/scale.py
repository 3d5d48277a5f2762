"""`detr-batch bench scale`: the pipeline with more and more simulated devices.

Each device takes a fixed time for an image, and no CPU. The bench thus measures reading, decoding,
Ray and staging, and not this machine's arithmetic. The loss is what these hold back of the rate
that the devices could reach.
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
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from PIL import Image
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from jobs.bench.measure import FEWEST_ROUNDS, Measurement, milliseconds
from jobs.bench.simulated import SimulatedDetector
from jobs.cluster.start import start_ray
from jobs.demo.scenes import render_scene
from model.named import named_model
from pipeline.dataflow import FlowSettings, Layout, Pool, label_shards, read_back_staging
from pipeline.plan.plan import plan_shards
from pipeline.plan.remaining import remaining_work
from pipeline.schema import Receipt
from pipeline.stages.staged import list_staged_files
from pipeline.storage.errors import CommandFailed

SIZE = (400, 288)  # width and height of the images; shapes-tiny needs no resizing at this size
IMAGES_PER_SHARD = 8  # two seconds of a device, so that rates can be measured from blocks
FEWEST_BLOCKS = 5  # for each device, so that its rate can be measured
SKIPPED = 0.15  # share of the images at either end, where pools fill and drain
SAMPLE_SECONDS = 0.25
Times = NDArray[np.float64]


@dataclass
class Sample:
    """One run: its rate, and its use of this machine."""

    images_per_second: float  # rate of the devices, between the first and the last images
    driver_cpu: float  # in cores
    driver_mib: float  # peak
    store_mib: float  # peak of bytes in Ray's object store
    machine_cpu: float  # share of all cores, used by any process


@dataclass
class Scaled:
    """All runs with one number of detectors."""

    detectors: int
    samples: list[Sample] = field(default_factory=list)

    def middle(self, figure: str) -> float:
        """Return the median of one of Sample's fields."""
        return float(median(getattr(sample, figure) for sample in self.samples))


def write_shards(folder: Path, shards: int) -> None:
    """Write tar shards of IMAGES_PER_SHARD JPEG images, which repeat twenty different images."""
    images = []
    for seed in range(20):
        data = io.BytesIO()
        pixels = render_scene(np.random.default_rng(seed), *SIZE).pixels
        Image.fromarray(pixels).save(data, "JPEG", quality=90)
        images.append(data.getvalue())
    folder.mkdir()
    endless = enumerate(cycle(images))
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:07}.tar", "w") as archive:
            for index, image in islice(endless, IMAGES_PER_SHARD):
                entry = tarfile.TarInfo(f"{index:07}.jpg")
                entry.size = len(image)
                archive.addfile(entry, io.BytesIO(image))


class _Watch:
    """Samples this process and Ray's object store at intervals."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.state = get_state_from_address(ray.get_runtime_context().gcs_address)
        self.rss = self.store = 0
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
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
    """Run about `seconds` with each number of detectors, in turn, at least FEWEST_ROUNDS times.

    CommandFailed, without any result, if an image is lost or comes twice.
    """
    # Without this Ray warns, on stdout, of more processes than there are CPUs.
    os.environ["RAY_worker_maximum_startup_concurrency"] = "64"  # noqa: SIM112
    start_ray(None)
    found = [Scaled(count) for count in detectors]
    with TemporaryDirectory() as name:
        for scaled in found:
            shards = math.ceil(seconds / (device_seconds * IMAGES_PER_SHARD)) * scaled.detectors
            write_shards(Path(name) / f"in-{scaled.detectors}", shards)
        for turn in range(FEWEST_ROUNDS):
            for scaled in random.sample(found, len(found)):
                source = Path(name) / f"in-{scaled.detectors}"
                output = Path(name) / f"out-{scaled.detectors}-{turn}"
                scaled.samples.append(_run(source, output, scaled.detectors, device_seconds))
    return found, [_measurement(scaled, device_seconds) for scaled in found]


def _run(source: Path, output: Path, detectors: int, device_seconds: float) -> Sample:
    shards = plan_shards(str(source)).shards
    plan_url, staging = str(output / "plan.parquet"), str(output / "blocks")
    shards.write_to(plan_url)
    work, _ = remaining_work(shards, read_back_staging(staging))
    cpus = os.cpu_count() or 1
    pool = Pool(detectors, detectors, num_cpus=0, num_gpus=0, memory=0)
    settings = FlowSettings(
        plan_url,
        staging,
        named_model("shapes-tiny").config().resize,
        SimulatedDetector,
        (device_seconds,),
        Layout(pool, preparers=cpus, fewest_preparers=1, tasks=2 * cpus),
    )
    receipts: list[Receipt] = []
    watch = _Watch()
    with watch.running():
        psutil.cpu_percent()
        began, used = time.perf_counter(), watch.cpu_seconds()
        receipts.extend(label_shards(work, settings))
        wall = time.perf_counter() - began
        machine = psutil.cpu_percent() / 100
        driver = (watch.cpu_seconds() - used) / wall
    check_whole(receipts, read_back_staging(staging).images, len(shards) * IMAGES_PER_SHARD)
    rate = steady(computed_at(staging))
    return Sample(rate, driver, watch.rss / 2**20, watch.store / 2**20, machine)


def check_whole(receipts: list[Receipt], staged: int, planned: int) -> None:
    """CommandFailed unless each image is in the receipts once, is staged, and did not fail."""
    told = sum(receipt.images for receipt in receipts)
    failed = sum(sum(receipt.failed.values()) for receipt in receipts)
    if not planned == told == staged or failed:
        raise CommandFailed(
            f"of {planned} images {told} were told of, {staged} are staged, and {failed} failed"
        )


def computed_at(staging: str) -> Times:
    """Return when the devices finished each staged image: (N,), seconds of Unix time."""
    files = [Path(staging) / name for name in list_staged_files(staging)]
    column = pa.concat_tables([pq.read_table(file, columns=["processed_at"]) for file in files])
    return np.asarray(column["processed_at"].cast(pa.int64())) / 1e6


def steady(times: Times) -> float:
    """Compute images a second, without those at either end: the slope of finished images over time.

    The times are the devices' own. Staging comes in jolts, which made a pool look faster than its
    devices can be.
    """
    times = np.sort(times)
    done = np.arange(1, len(times) + 1)
    middle = (done >= SKIPPED * len(times)) & (done <= (1 - SKIPPED) * len(times))
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
        error=0.0,  # share of images; `check_whole` passes no other value
    )


def as_text(found: list[Scaled], device_seconds: float) -> str:
    """Make a table with a line for each number of devices; "linear" extends the smallest number."""
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
