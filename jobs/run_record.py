"""What a run writes about itself: run.json when it starts, report.json when it ends."""

import hashlib
import json
import os
import platform
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from jobs.prices import Price
from model.config import DeformableDetrConfig
from pipeline import retries
from pipeline.schema import OK, Receipt
from pipeline.storage import join, open_location, read_object, write_whole

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
    document: dict[str, Any] = json.loads(read_object(fs, path))
    return document


def score_threshold(output: str, run_id: str) -> float:
    """The score below which a run kept no box; 0 where it says nothing of one."""
    try:
        options = read_document(output, run_id, "run.json").get("options", {})
    except FileNotFoundError:
        return 0.0
    return float(options.get("score_threshold") or 0.0)


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

    def add(self, receipt: Receipt) -> None:
        self.images += receipt.images
        self.detections += receipt.detections
        self.encoded_bytes += receipt.encoded_bytes
        self.retries += receipt.retries
        self.failed.update(receipt.failed)
        for stage in ("read", "prepare", "detect", "stage"):
            self.seconds[stage] += getattr(receipt, f"{stage}_seconds")
        limits = [n for n in (self.batch_limit, receipt.batch_limit) if n is not None]
        self.batch_limit = min(limits, default=None)
        self.last = max(self.last, receipt.finished_at)
        if self.first is None:
            self.first = receipt

    def steady_rate(self) -> float | None:
        """Images/s after the first receipt, so without start-up; None before the second."""
        if self.first is None or self.last <= self.first.finished_at:
            return None
        return (self.images - self.first.images) / (self.last - self.first.finished_at)

    def seconds_left(self, encoded_bytes: int) -> float | None:
        """Until this many bytes of images are labelled, at the steady rate; None before it."""
        if self.first is None or self.last <= self.first.finished_at:
            return None
        done = self.encoded_bytes - self.first.encoded_bytes
        left = max(0, encoded_bytes - self.encoded_bytes)
        return left * (self.last - self.first.finished_at) / done if done else None


def report(
    tally: Tally, counts: dict[str, int], detections: int, detectors: int, price: Price | None
) -> dict[str, Any]:
    """The figures of a finished run; money is null where no price was given.

    `counts` are the images of the whole run by status, `detections` its boxes. `tally` is what this
    command labelled, less than that where it took up a killed run; times, rates and costs are its
    own. `device_use` is the share of the wall time, start-up included, in which the detectors
    computed.
    """
    wall = time.time() - tally.started
    cost = None if price is None else price.usd_per_hour * wall / 3600
    failed = {status: count for status, count in counts.items() if status != OK}
    return {
        "images": sum(counts.values()),
        "ok": counts.get(OK, 0),
        "failed": failed,
        "labelled_before": sum(counts.values()) - tally.images,
        "detections": detections,
        "wall_seconds": wall,
        "images_per_second": tally.images / wall,
        "images_per_second_steady": tally.steady_rate(),
        "seconds_by_stage": dict(tally.seconds),
        "storage_retries": tally.retries + retries.repeated,
        "batch_limit": tally.batch_limit,
        "device_use": tally.seconds["detect"] / (wall * detectors),
        "usd_per_hour": price and price.usd_per_hour,
        "price_basis": price and price.basis,
        "usd": cost,
        "usd_per_1000_images": cost * 1000 / tally.images if cost and tally.images else None,
    }
