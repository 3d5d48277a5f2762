"""What a run writes about itself: run.json when it starts, report.json when it ends."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

from jobs.accounting.estimate import Estimate
from jobs.accounting.node_hours import Cost, Rates
from jobs.accounting.startup import FIRST_BLOCK, Startup
from jobs.accounting.timeline import CpuMeter, Point, Timeline
from pipeline.schema import OK, Receipt
from pipeline.storage import retries

STEADY_SHARE = 0.1  # of the time so far, from which what follows the first block tells a rate
STAGES = ("read", "prepare", "detect", "stage")  # those of the flow, whose workers run side by side
ALL_STAGES = (*STAGES, "publish")


class Report(TypedDict):
    """report.json: what a run did, how fast, and at what cost.

    Where a run took up a killed one, counts are of the whole run, and times, rates and costs of the
    command that ended it. Runs of earlier versions lack some of it: absent is not known.
    """

    images: int
    ok: int
    failed: dict[str, int]  # images by reason, see pipeline/schema.py
    labelled_before: int  # images of the killed run that was taken up
    detections: int
    wall_seconds: float  # from the start of the flow until the tables were written
    startup_seconds: float | None  # until the first block was done; None where there was none
    # By part, in order, from the start of the process; see startup.py. "first block" is the last of
    # them, and `startup_seconds` lies within it. A part that did not happen is absent.
    startup_parts: NotRequired[dict[str, float]]
    images_per_second: float  # start-up included
    images_per_second_steady: float | None  # behind the first block; None where that is all
    seconds_by_stage: dict[str, float]  # summed over its workers; "publish" is wall time
    stage_workers: dict[str, int]  # how many of each can work at once
    stage_use: dict[str, float] | None  # share of their time, behind the first block, that they did
    limiting_stage: str | None  # whose workers were busiest; None where nothing tells
    timeline: list[Point]  # at most 201, the first at 0
    storage_retries: int  # requests that were repeated
    batch_limit: int | None  # pictures at once, where memory did not hold --batch-size
    # Share of the wall time in which detectors computed: GPUs tell it by events of their own.
    device_use: float
    cpus: int | None  # of the machine; None on a cluster, where nobody measures the next
    cpu_use: float | None  # share of their time that the run's processes took
    encoded_bytes: int  # of the images that this command labelled
    node_hours: dict[str, float]  # by kind of node, "gpu" or "cpu"; start-up included
    cost: Cost | None  # by kind of node; None: no price was given, as with the next four
    usd_per_hour: float | None  # of all machines together
    price_basis: str | None  # where the price is from
    usd: float | None  # what the run cost
    usd_per_1000_images: float | None
    estimate: NotRequired[Estimate | None]  # what was expected before the run
    reconciliation: NotRequired[dict[str, int]]  # "planned", and rows by status


@dataclass
class Tally:
    """Sums over receipts: all that the driver knows of a run under way."""

    started: float = field(default_factory=time.time)  # Unix time
    images: int = 0
    detections: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    # By stage, summed over workers.
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    encoded_bytes: int = 0
    retries: int = 0  # requests to stores that were repeated
    batch_limit: int | None = None  # pictures at once, where memory does not hold as many as asked
    first: Receipt | None = None
    last: float = 0.0
    timeline: Timeline = field(default_factory=Timeline)
    cpus: int | None = None  # of this machine, where all of the run is on it
    meter: CpuMeter = field(default_factory=CpuMeter)
    startup: Startup = field(default_factory=Startup)
    listener: Callable[[Receipt], None] | None = None  # hears of each receipt

    def add(self, receipt: Receipt) -> None:
        now = time.time()
        # Clocks of a cluster's machines differ: nothing is done before the start or after now.
        done = min(max(receipt.finished_at, self.started), now)
        self.timeline.add(done - self.started, receipt.images)
        if self.cpus is not None:
            self.timeline.add_cpu(now - self.started, self.meter.seconds())
        self.images += receipt.images
        self.detections += receipt.detections
        self.encoded_bytes += receipt.encoded_bytes
        self.retries += receipt.retries
        self.failed.update(receipt.failed)
        for stage in STAGES:
            self.seconds[stage] += getattr(receipt, f"{stage}_seconds")
        limits = [n for n in (self.batch_limit, receipt.batch_limit) if n is not None]
        self.batch_limit = min(limits, default=None)
        self.last = max(self.last, receipt.finished_at)
        if self.first is None:
            self.first = receipt
            self.startup.end(FIRST_BLOCK, done)
        if self.listener is not None:
            self.listener(receipt)

    def steady_seconds(self) -> float | None:
        """Behind the first receipt, so without start-up; None where that is too short to tell."""
        if self.first is None:
            return None
        seconds = self.last - self.first.finished_at
        enough = seconds > 0 and seconds >= STEADY_SHARE * (self.last - self.started)
        return seconds if enough else None

    def steady_rate(self) -> float | None:
        """Images/s without start-up; None where `steady_seconds` is."""
        seconds = self.steady_seconds()
        if seconds is None or self.first is None:
            return None
        return (self.images - self.first.images) / seconds

    def startup_seconds(self) -> float | None:
        """Until the first receipt; None before it."""
        return None if self.first is None else max(0.0, self.first.finished_at - self.started)

    def stage_use(self, workers: Mapping[str, int]) -> dict[str, float] | None:
        """By stage: how much of their time `workers` were busy, without start-up."""
        window = self.steady_seconds()
        if window is None or self.first is None:
            return None
        busy = {s: self.seconds[s] - getattr(self.first, f"{s}_seconds") for s in STAGES}
        return {stage: min(1.0, busy[stage] / (window * workers[stage])) for stage in STAGES}

    def seconds_left(self, encoded_bytes: int) -> float | None:
        """Until this many bytes of images are labelled, at the steady rate; None before it."""
        seconds = self.steady_seconds()
        if seconds is None or self.first is None:
            return None
        done = self.encoded_bytes - self.first.encoded_bytes
        left = max(0, encoded_bytes - self.encoded_bytes)
        return left * seconds / done if done else None


def sorted_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Images by status: those that are labelled first, then reasons of failures by their names."""
    return {name: counts[name] for name in sorted(counts, key=lambda name: (name != OK, name))}


def report(
    tally: Tally,
    counts: dict[str, int],
    detections: int,
    workers: Mapping[str, int],
    node_hours: dict[str, float],
    hours: float,
    rates: Rates,
) -> Report:
    """The figures of a finished run; money is null where no price was given.

    `counts` are the images of the whole run by status, `detections` its boxes, `workers` how many
    of each stage can work at once. `tally` is what this command labelled, in `hours`, by nodes of
    so many `node_hours`.
    """
    wall = time.time() - tally.started
    cost = rates.bill(node_hours, hours)
    usd = None if cost is None else cost["usd"]
    use = tally.stage_use(workers)
    return {
        "images": sum(counts.values()),
        "ok": counts.get(OK, 0),
        "failed": {s: n for s, n in sorted_counts(counts).items() if s != OK},
        "labelled_before": sum(counts.values()) - tally.images,
        "detections": detections,
        "wall_seconds": wall,
        "startup_seconds": tally.startup_seconds(),
        "startup_parts": dict(tally.startup.seconds),
        "images_per_second": tally.images / wall,
        "images_per_second_steady": tally.steady_rate(),
        "seconds_by_stage": {s: tally.seconds[s] for s in ALL_STAGES if s in tally.seconds},
        "stage_workers": {stage: workers[stage] for stage in STAGES},
        "stage_use": use,
        "limiting_stage": None if use is None else max(use, key=use.__getitem__),
        "timeline": tally.timeline.points(),
        "storage_retries": tally.retries + retries.repeated - tally.startup.repeated_before,
        "batch_limit": tally.batch_limit,
        "device_use": tally.seconds.get("detect", 0.0) / (wall * workers["detect"]),
        "cpus": tally.cpus,
        "cpu_use": tally.cpus and tally.meter.seconds() / (wall * tally.cpus),
        "encoded_bytes": tally.encoded_bytes,
        "node_hours": node_hours,
        "cost": cost,
        "usd_per_hour": None if usd is None else usd / hours,
        "price_basis": None if cost is None else cost["basis"],
        "usd": usd,
        "usd_per_1000_images": (
            usd * 1000 / tally.images if usd is not None and tally.images else None
        ),
    }
