"""Metrics of a run for Prometheus, exported through Ray's own metrics while the run goes on.

Ray serves them on the node where the command runs, with `ray_` before each name. infra/monitoring
has rules and a dashboard over them. Each metric is tagged with OUTPUT, without secrets, and with
the run id. These tags add no time series, because Ray tags all metrics with the process, which
belongs to the run. Figures come from receipts, as the figures of report.json do. Those of GPUs are
NVML's, of all programs on the GPU, and are tagged with it too. The metrics cost 14 us more for each
receipt, and 0.2 ms of a CPU for each update of the gauges (2026-11-25).
"""

import logging
import threading
import time
from collections.abc import Callable

import pyarrow.compute as pc
from ray.util.metrics import Counter, Gauge

from jobs.accounting.node_hours import NodeMeter, Rates
from jobs.accounting.tally import Tally
from jobs.label.notify.announced_run import ENDED, FAILED, PUBLISHED
from jobs.label.planning import Run
from pipeline.schema import OK, Receipt
from pipeline.storage import retries
from pipeline.storage.clock import steady_time
from pipeline.storage.urls import mask

log = logging.getLogger(__name__)

PREFIX = "detr_batch_"
TAGS = ("output", "run")
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {  # by name: description and further tags
    "images": ("Images that are labelled, or failed, by their status", ("status",)),
    "encoded_bytes": ("Bytes of those images, as they lay in the store", ()),
    "detect_seconds": ("Seconds in which detectors computed, summed over them", ()),
    "storage_retries": ("Requests to stores that were repeated", ()),
    "runs": ("Runs that ended: published, failed, or ended by a budget before that", ("result",)),
}
GAUGES = {
    "running": "1 until the run ends, then 0",
    "images_per_second": "Images a second, without start-up",
    "usd": "USD so far, start-up and idle time included, where a price was given",
    "detectors": "Detectors that can work at once",
    "device_idle_share": "Share of the time so far in which detectors did not compute",
    "planned_bytes": "Bytes of all that the run is to label, where the store says",
    "planned_images": "Images that the run is to label, where all are loose files",
    "last_block_timestamp_seconds": "Unix time of the newest block that was done, or of the start",
    "watt_hours": "Energy that GPUs took so far, where NVML reports it",
}
GPU_GAUGES = {  # by GPU, where NVML is
    "gpu_use": "Share of the time in which a GPU computed, in the last block",
    "gpu_memory_bytes": "Bytes of the memory of a GPU in use, by all programs",
    "gpu_watts": "Power of a GPU",
}
UPDATE_SECONDS = 5.0  # between two updates of gauges; Ray (2.60) exports them every 10 s


def exported_names() -> set[str]:
    """The names of all metrics in Prometheus."""
    counters = {f"ray_{PREFIX}{name}_total" for name in COUNTERS}
    return counters | {f"ray_{PREFIX}{name}" for name in (*GAUGES, *GPU_GAUGES)}


class RunMetrics:
    """Exports the metrics of a run while the `with` block runs. An error here never ends a run.

    `tally` has the sums over the receipts of the run; `nodes` counts its node-hours.
    """

    def __init__(
        self,
        output: str,
        run: Run,
        tally: Tally,
        nodes: NodeMeter,
        rates: Rates,
        detectors: int,
    ):
        self._tags = {"output": mask(output), "run": run.run_id}
        self._run, self._tally, self._nodes, self._detectors = run, tally, nodes, detectors
        self._rates = rates
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._planned: dict[str, int] = {}
        self._newest = time.time()  # Unix time of the newest block
        self._repeated = retries.repeated
        self._complained = False
        self._result = PUBLISHED
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="metrics")

    def __enter__(self) -> "RunMetrics":
        self._quietly(self._begin)
        self._tally.listener = lambda receipt: self._quietly(lambda: self._count(receipt))
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._tally.listener = None
        if kind:
            self._result = FAILED
        self._stop.set()
        self._thread.join(UPDATE_SECONDS)  # with a limit, because Ray may not answer any more

    def keep(self) -> None:
        """A budget has ended the run before anything of it could be published."""
        self._result = ENDED

    def _quietly(self, export: Callable[[], None]) -> None:
        try:
            export()
        except Exception as error:  # Ray raises many types
            if not self._complained:
                log.warning("some metrics of %s are not exported: %s", self._run.run_id, error)
            self._complained = True

    def _begin(self) -> None:
        for name, (description, tags) in COUNTERS.items():
            self._counters[name] = Counter(PREFIX + name, description, TAGS + tags)
        for name, description in GAUGES.items():
            self._gauges[name] = Gauge(PREFIX + name, description, TAGS)
        for name, description in GPU_GAUGES.items():
            self._gauges[name] = Gauge(PREFIX + name, description, (*TAGS, "gpu"))
        shards = self._run.shards
        self._planned["planned_bytes"] = shards.size
        if set(shards.outline["kind"].unique().to_pylist()) == {"files"}:
            self._planned["planned_images"] = pc.sum(shards.outline["objects"]).as_py()
        self._update()

    def _watch(self) -> None:
        while not self._stop.wait(UPDATE_SECONDS):
            self._quietly(self._update)
        self._quietly(self._end)

    def _count(self, receipt: Receipt) -> None:
        self._newest = time.time()
        labelled = receipt.images - sum(receipt.failed.values())
        for status, images in {OK: labelled, **receipt.failed}.items():
            self._inc("images", images, status=status)
        self._inc("encoded_bytes", receipt.encoded_bytes)
        self._inc("detect_seconds", receipt.detect_seconds)
        self._inc("storage_retries", receipt.retries)

    def _update(self, running: bool = True) -> None:
        tally = self._tally
        detectors_time = max(1e-9, steady_time() - tally.started) * self._detectors
        self._set(
            running=int(running),
            images_per_second=tally.steady_rate(),
            detectors=self._detectors,
            device_idle_share=max(0.0, 1 - tally.seconds.get("detect", 0.0) / detectors_time),
            last_block_timestamp_seconds=self._newest,
            **self._planned,
        )
        repeated = retries.repeated  # requests of this process; receipts have those of workers
        self._inc("storage_retries", repeated - self._repeated)
        self._repeated = repeated
        cost = self._rates.bill(*self._nodes.read())
        self._set(usd=None if cost is None else cost["usd"], watt_hours=tally.gpus.watt_hours())
        for device, reading in list(tally.gpus.newest.items()):
            figures = (reading.use, reading.memory, reading.watts)
            for name, value in zip(GPU_GAUGES, figures, strict=True):
                self._gauges[name].set(value, {**self._tags, "gpu": device})

    def _end(self) -> None:
        self._inc("runs", 1, result=self._result)
        self._update(running=False)

    def _inc(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray's counters refuse 0
            self._counters[name].inc(value, {**self._tags, **tags})

    def _set(self, **values: float | None) -> None:
        for name, value in values.items():
            self._gauges[name].set(value, self._tags)  # None leaves the gauge unset
