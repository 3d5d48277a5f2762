"""Sums over the receipts of a run, and report.json made from them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired, TypedDict

from jobs.accounting.estimate import Estimate
from jobs.accounting.gpus import GpuFigures, GpuSums
from jobs.accounting.node_hours import Cost, Rates
from jobs.accounting.startup import FIRST_BLOCK, Startup
from jobs.accounting.timeline import Point, Timeline
from pipeline.schema import OK, Receipt
from pipeline.stages.box_overlaps import NEAR
from pipeline.stages.publish import PartFile
from pipeline.storage import retries
from pipeline.storage.clock import steady_time

STEADY_SHARE = 0.1  # least share of the time so far that a steady rate needs behind the first block
STAGES = ("read", "prepare", "detect", "stage")  # of the dataflow; their workers run in parallel
ALL_STAGES = (*STAGES, "publish")


class NearDuplicateFigures(TypedDict):
    """Number of pairs of boxes of one image whose IoU is greater than `iou`."""

    iou: float
    same_class: int
    any_class: int  # those of one class, too


def near_duplicates_of(files: Sequence[PartFile]) -> NearDuplicateFigures:
    """The near-duplicates of a run, from its published files."""
    return {
        "iou": NEAR,
        "same_class": sum(file.near_duplicates_same_class for file in files),
        "any_class": sum(file.near_duplicates_any_class for file in files),
    }


class Carried(TypedDict):
    """What a run carried along."""

    columns: dict[str, str]
    not_carried: int


class Report(TypedDict):
    """report.json: the images, times, rates and costs of a run.

    If a run was killed and resumed, the counts are those of the whole run. Times, rates and costs
    are those of the command that finished it. Reports of earlier versions lack some fields: an
    absent field is not known.
    """

    images: int
    ok: int
    failed: dict[str, int]  # number of images by reason, see pipeline/schema.py
    labelled_before: int  # images that earlier commands, killed or ended by a budget, had labelled
    # Only of a run that a budget ended: the limit, the number of objects that it left, and that of
    # images among them that it labelled already, and that a later run publishes.
    ended_by: NotRequired[str]
    left: NotRequired[int]
    kept: NotRequired[int]
    detections: int
    # Pairs of boxes of one image whose IoU is greater than `iou`, if the version counted them.
    near_duplicates: NotRequired[NearDuplicateFigures]
    # From the creation of the process that ran the command until this report was made. The tables
    # and the images of the page are written and read by then. What follows is not in it: the page
    # is written, the run is committed, and Ray ends (3 s for a Ray of this machine, 2026-11-27).
    # Reports of versions before 0.2 count from the start of the flow, behind the start of Ray.
    wall_seconds: float
    startup_seconds: float | None  # until the first block was done; None if there was none
    # Seconds by part, in order, from the start of the process; see startup.py. "first block" is the
    # last part, and all parts add up to `startup_seconds`. A part that did not happen is absent.
    startup_parts: NotRequired[dict[str, float]]
    images_per_second: float  # start-up included
    images_per_second_steady: float | None  # behind the first block; None if that is too short
    seconds_by_stage: dict[str, float]  # summed over workers; "publish" is wall time
    stage_workers: dict[str, int]  # number of workers that can work at once, by stage
    stage_use: dict[str, float] | None  # busy share behind the first block
    limiting_stage: str | None  # stage with the busiest workers; None if not known
    timeline: list[Point]  # at most 201, the first at 0
    storage_retries: int  # requests that were repeated
    # JPEGs that the decoder of a GPU refused, and CPUs decoded (--decode gpu); of what this command
    # labelled. Absent if there are none.
    refused_jpegs: NotRequired[int]
    # Number of images by what decided their bits (model/computation.py); of what this command
    # labelled. Versions before 0.2 did not record it.
    computations: NotRequired[dict[str, int]]
    # Share of the wall time in which detectors computed. On GPUs it is measured with GPU events.
    device_use: float
    cpus: int | None  # of this machine; None on a cluster, where it is not measured
    cpu_use: float | None  # share of CPU time that the processes of the run took
    encoded_bytes: int  # of the images that this command labelled
    node_hours: dict[str, float]  # by kind of node, "gpu" or "cpu"; start-up included
    cost: Cost | None  # None if no price was given, as in the next four fields
    usd_per_hour: float | None  # of all machines together
    price_basis: str | None  # source of the price
    usd: float | None  # cost of the run
    usd_per_1000_images: float | None
    # What NVML reported of the GPUs; absent where there was none. The energy is that of boards.
    gpus: NotRequired[list[GpuFigures]]
    watt_hours: NotRequired[float | None]  # None if that of a GPU is not known
    watt_hours_per_1000_images: NotRequired[float | None]
    estimate: NotRequired[Estimate | None]  # estimate from before the run
    # What proved the run (jobs/label/canaries/proof.py); absent for a run without canaries.
    canaries: NotRequired[dict[str, Any]]
    left_out: NotRequired[dict[str, int]]  # objects under INPUT that are not read, by reason
    reconciliation: NotRequired[dict[str, int]]  # number of planned images, and of rows by status
    # The columns of INPUT that `images` has: their types by name, and the number of values that are
    # NULL because they could not be carried along. Absent if the run carries none.
    carried: NotRequired[Carried]


@dataclass
class Tally:
    """Sums over receipts: all that the driver knows of a run while it goes on."""

    images: int = 0
    before: int = 0  # images that were staged before
    detections: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    # Seconds by stage, summed over workers.
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    encoded_bytes: int = 0
    retries: int = 0  # requests to stores that were repeated
    refused: int = 0  # JPEGs that the decoder of a GPU refused
    computations: Counter[str] = field(default_factory=Counter)  # images by what decided their bits
    gpus: GpuSums = field(default_factory=GpuSums)
    first: Receipt | None = None
    last: float = 0.0  # Unix time at which the last block was done
    timeline: Timeline = field(default_factory=Timeline)
    cpus: int | None = None  # of this machine; None if the run is on a cluster
    startup: Startup = field(default_factory=Startup)  # the run began with it
    listener: Callable[[Receipt], None] | None = None  # called with each receipt

    @property
    def started(self) -> float:
        """The Unix time at which the run began, by `steady_time`."""
        return self.startup.began

    def add(self, receipt: Receipt) -> None:
        now = steady_time()
        # Clocks of a cluster differ and jump: a time that cannot be is replaced by that of now.
        done = receipt.finished_at if self.started <= receipt.finished_at <= now else now
        self.timeline.add(done - self.started, receipt.images)
        if self.cpus is not None:
            self.timeline.add_cpu(now - self.started, self.startup.cpu.seconds())
        self.images += receipt.images
        self.detections += receipt.detections
        self.encoded_bytes += receipt.encoded_bytes
        self.retries += receipt.retries
        self.refused += receipt.refused
        self.failed.update(receipt.failed)
        for stage in STAGES:
            self.seconds[stage] += getattr(receipt, f"{stage}_seconds")
        if receipt.computation is not None:
            self.computations[receipt.computation] += receipt.images
        self.gpus.add(receipt.gpu)
        self.last = max(self.last, done)
        if self.first is None:
            self.first = replace(receipt, finished_at=done)
            self.startup.end(FIRST_BLOCK, done)
        if self.listener is not None:
            self.listener(receipt)

    def steady_seconds(self) -> float | None:
        """Seconds behind the first receipt, so without start-up. None if too short for a rate."""
        if self.first is None:
            return None
        seconds = self.last - self.first.finished_at
        enough = seconds > 0 and seconds >= STEADY_SHARE * (self.last - self.started)
        return seconds if enough else None

    def steady_rate(self) -> float | None:
        """Images/s without start-up. None if `steady_seconds` is None."""
        seconds = self.steady_seconds()
        if seconds is None or self.first is None:
            return None
        return (self.images - self.first.images) / seconds

    def startup_seconds(self) -> float | None:
        """Seconds until the first receipt. None before the first receipt."""
        return None if self.first is None else max(0.0, self.first.finished_at - self.started)

    def stage_use(self, workers: Mapping[str, int]) -> dict[str, float] | None:
        """The share of time in which `workers` were busy, by stage, without start-up."""
        window = self.steady_seconds()
        if window is None or self.first is None:
            return None
        busy = {s: self.seconds[s] - getattr(self.first, f"{s}_seconds") for s in STAGES}
        return {stage: min(1.0, busy[stage] / (window * workers[stage])) for stage in STAGES}

    def seconds_left(self, encoded_bytes: int) -> float | None:
        """Seconds until `encoded_bytes` are labelled, at the steady rate. None without a rate."""
        seconds = self.steady_seconds()
        if seconds is None or self.first is None:
            return None
        done = self.encoded_bytes - self.first.encoded_bytes
        left = max(0, encoded_bytes - self.encoded_bytes)
        return left * seconds / done if done else None


def sorted_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Sort the number of images by status: labelled images first, then failures by name."""
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
    """Make the report of a finished run. Costs are None if no price was given.

    `counts` is the number of images of the whole run by status, and `detections` its number of
    boxes. `workers` is the number of workers that can work at once, by stage. `tally` has what this
    command labelled, which took `hours`, and `node_hours` by kind of node.
    """
    wall = steady_time() - tally.started
    cost = rates.bill(node_hours, hours)
    usd = None if cost is None else cost["usd"]
    use = tally.stage_use(workers)
    summary: Report = {
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
        "computations": dict(tally.computations),
        "device_use": tally.seconds.get("detect", 0.0) / (wall * workers["detect"]),
        "cpus": tally.cpus,
        "cpu_use": tally.cpus and tally.startup.cpu.seconds() / (wall * tally.cpus),
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
    if tally.refused:
        summary["refused_jpegs"] = tally.refused
    if figures := tally.gpus.figures():
        energy = tally.gpus.watt_hours()
        summary["gpus"] = figures
        summary["watt_hours"] = energy
        summary["watt_hours_per_1000_images"] = (
            energy * 1000 / tally.images if energy is not None and tally.images else None
        )
    return summary
