"""Text for the page: the figures of report.json in words."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jobs.accounting.figures import (
    UNKNOWN,
    format_duration,
    format_figure,
    format_number,
    format_per_cent,
)
from jobs.accounting.plurals import counted
from jobs.accounting.prices import REFERENCE_USD_PER_1000
from pipeline import schema
from pipeline.storage.urls import mask, printable

REASONS = {
    schema.UNREADABLE: "could not be fetched",
    schema.ADDRESS_NOT_ALLOWED: "its host or bucket is none that DETR_BATCH_IMAGE_HOSTS allows",
    schema.UNAVAILABLE: "its store failed, while others answered; the next run tries again",
    schema.EMPTY_FILE: "holds no bytes",
    schema.CORRUPT_SHARD: "an archive is broken from here on",
    schema.EMPTY_SHARD: "an archive without one image",
    schema.MISSING_BYTES: "the image column is null",
    schema.TOO_LARGE: "more bytes than are read of an image",
    schema.CHANGED: "replaced after it was listed; the next run labels it",
    schema.UNDECODABLE: "not an image that can be read",
    schema.TRUNCATED: "the file ends before the image does",
    schema.TOO_MANY_PIXELS: "more pixels than are decoded (100 million by default)",
    schema.DETECTOR_ERROR: "the model failed on it",
    schema.WORKER_CRASH: "crashed the process that opened it",
    schema.TIMED_OUT: "took longer than any image should",
}
NOT_MEASURED = "not measured"


def format_day(unix_time: float | None) -> str:
    try:
        day = None if unix_time is None else datetime.fromtimestamp(unix_time, UTC)
    except (ValueError, OverflowError):  # a clock showed a year behind 9999
        day = None
    return "at an unknown time" if day is None else f"{day:%-d %B %Y, %H:%M} UTC"


def list_examples(examples: Sequence[str], count: int) -> str:
    """List the first of `count` names."""
    return ", ".join(examples[:2]) + (" ..." if count > 2 else "")


def gpu_as_text(gpu: Mapping[str, Any]) -> str:
    """The use, memory and power of a GPU (`jobs.accounting.gpus.GpuFigures`), in words."""
    use, watts = gpu["use"], gpu["watts"]
    names = ("memory", "total_memory")
    gib = [UNKNOWN if gpu[name] is None else f"{gpu[name] / 2**30:.1f}" for name in names]
    memory = NOT_MEASURED if gpu["memory"] is None else f"{gib[0]} of {gib[1]} GiB"
    return (
        f"use {NOT_MEASURED if use is None else format_per_cent(use)}, memory {memory}, "
        f"power {NOT_MEASURED if watts is None else f'{watts:.0f} W'}"
    )


FILTERS: dict[str, Callable[..., str]] = {
    "number": format_number,
    "counted": counted,
    "figure": format_figure,
    "per_cent": format_per_cent,
    "duration": format_duration,
    "day": format_day,
    # Tables of earlier versions may hold errors with signed URLs.
    "message": lambda error: printable(mask(error)),
    "safe_text": lambda value: printable(str(value)),
    "gpu": gpu_as_text,
    "reason": lambda status: REASONS.get(status, ""),
}


def compare_with_reference(cost: float | None) -> str:
    """Compare USD per 1,000 images with the reference price, in words; "" where none is known."""
    if cost is None:
        return ""
    reference = f"the reference price of {REFERENCE_USD_PER_1000:g} USD"
    times = cost / REFERENCE_USD_PER_1000
    if 0.95 < times < 1.05:
        return f"as much as {reference}"
    if times >= 1:
        return f"{times:.1f} times {reference}"
    return f"{format_per_cent(1 - times)} below {reference}"


def phases(report: dict[str, Any]) -> list[tuple[str, float]]:
    """Split the wall time into (name, seconds); it is one part where the report knows no more."""
    wall = report["wall_seconds"]
    startup = report.get("startup_seconds")
    publish = report["seconds_by_stage"].get("publish", 0.0)
    if startup is None:
        return [("whole run", wall)]
    rest = max(0.0, wall - startup - publish)
    if report.get("stage_use") is None:  # there was only one block
        return [("start-up and labelling", startup + rest), ("publishing", publish)]
    return [
        ("start-up and first block", startup),
        ("labelling", rest),
        ("publishing", publish),
    ]


def stages(report: dict[str, Any]) -> list[dict[str, Any]]:
    """List the stages in dataflow order; shares and workers are None where they are not known."""
    use, workers = report.get("stage_use") or {}, report.get("stage_workers") or {}
    longest = max([*report["seconds_by_stage"].values(), 1e-9])
    return [
        {
            "name": name,
            "seconds": seconds,
            "part": seconds / longest,
            "workers": workers.get(name),
            "use": use.get(name),
            "limits": name == report.get("limiting_stage"),
        }
        for name, seconds in report["seconds_by_stage"].items()
    ]
