"""What a run writes about itself: run.json when it starts, report.json when it ends."""

import hashlib
import json
import os
import platform
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from model.config import DeformableDetrConfig
from pipeline.schema import Receipt
from pipeline.storage import join, open_location, write_whole

PACKAGES = ("detr-batch", "ray", "torch", "torchvision", "pyarrow", "pillow", "fsspec")


def fingerprint(config: DeformableDetrConfig, weights: str, score_threshold: float) -> str:
    """16 hex digits of all that decides an image's labels; `weights` is a digest, or "random"."""
    document = {
        "config": asdict(config),
        "weights": weights,
        "score_threshold": score_threshold,
        "padding": "invariant",
        "resize": "pillow-bilinear",
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions and hardware of the driver."""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def write_document(output: str, run_id: str, name: str, document: dict[str, Any]) -> None:
    """Put a JSON document beside the run's manifest."""
    fs, path = open_location(join(output, "_runs", run_id, name), "OUTPUT")
    write_whole(fs, path, json.dumps(document, indent=1).encode())


def read_document(output: str, run_id: str, name: str) -> dict[str, Any]:
    """A JSON document of a run; FileNotFoundError where there is none."""
    fs, path = open_location(join(output, "_runs", run_id, name), "OUTPUT")
    document: dict[str, Any] = json.loads(fs.cat_file(path))
    return document


@dataclass
class Tally:
    """Sums over receipts: all that the driver knows of a run under way."""

    started: float = field(default_factory=time.time)  # Unix time
    images: int = 0
    detections: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)  # by stage, summed over workers
    first: tuple[float, int] | None = None  # time and images of the first receipt
    last: float = 0.0

    def add(self, receipt: Receipt) -> None:
        self.images += receipt.images
        self.detections += receipt.detections
        self.failed.update(receipt.failed)
        for stage in ("prepare", "detect", "stage"):
            self.seconds[stage] += getattr(receipt, f"{stage}_seconds")
        self.last = max(self.last, receipt.finished_at)
        if self.first is None:
            self.first = (receipt.finished_at, receipt.images)

    def steady_rate(self) -> float | None:
        """Images/s after the first receipt, so without start-up; None before the second."""
        if self.first is None or self.last <= self.first[0]:
            return None
        return (self.images - self.first[1]) / (self.last - self.first[0])


def report(tally: Tally, detectors: int, usd_per_hour: float | None) -> dict[str, Any]:
    """The figures of a finished run; money is null where no price was given.

    `device_use` is the share of the run's wall time, start-up included, in which the detectors
    computed.
    """
    wall = time.time() - tally.started
    cost = None if usd_per_hour is None else usd_per_hour * wall / 3600
    return {
        "images": tally.images,
        "ok": tally.images - tally.failed.total(),
        "failed": dict(tally.failed),
        "detections": tally.detections,
        "wall_seconds": wall,
        "images_per_second": tally.images / wall,
        "images_per_second_steady": tally.steady_rate(),
        "seconds_by_stage": dict(tally.seconds),
        "device_use": tally.seconds["detect"] / (wall * detectors),
        "usd_per_hour": usd_per_hour,
        "usd": cost,
        "usd_per_1000_images": None if cost is None else cost * 1000 / max(tally.images, 1),
    }
