"""The estimated time and cost of a run, from earlier runs or a probe, and the error of it."""

from collections.abc import Mapping
from statistics import median
from typing import Any, NotRequired, TypedDict

from jobs.accounting.figures import format_duration, format_figure
from jobs.accounting.node_hours import CPU, GPU, Rates
from jobs.accounting.plurals import counted

RUNS = 5  # the estimate takes medians over this many of the newest runs


class Estimate(TypedDict):
    """The estimate of a planned run."""

    images: int
    seconds: float  # start-up included
    usd: float | None  # None without a price
    runs: int  # number of runs that the estimate was made from; 0 if a probe measured it
    # The time at least and at most; absent where nothing says it. Of runs it is that of the fastest
    # and of the slowest of them, of a probe the 95 % interval.
    least_seconds: NotRequired[float]
    most_seconds: NotRequired[float]
    probed: NotRequired[int]  # number of images of the probe


def estimate(
    reports: list[dict[str, Any]],
    encoded_bytes: int,
    rates: Rates,
    loose: int = 0,
    loose_bytes: int = 0,
) -> Estimate | None:
    """Estimate a run from reports of earlier runs, oldest first. None if no report has enough data.

    The time is the start-up time plus a time for each byte. Bytes are used because the number of
    images in an archive is not known before it is read. Of all bytes, `loose_bytes` are those of
    `loose` files, which are an image each.
    """
    known = [
        report
        for report in reports
        if report.get("encoded_bytes") and report.get("startup_seconds") is not None
    ][-RUNS:]
    if not known:
        return None
    startups = [report["startup_seconds"] for report in known]
    per_byte = [
        max(0.0, report["wall_seconds"] - report["startup_seconds"]) / report["encoded_bytes"]
        for report in known
    ]
    labelled = [
        report["images"] - report["labelled_before"] + report.get("kept", 0) for report in known
    ]
    density = median(
        images / report["encoded_bytes"] for images, report in zip(labelled, known, strict=True)
    )
    seconds = median(startups) + encoded_bytes * median(per_byte)
    last = known[-1]
    wall = last["wall_seconds"] / 3600
    nodes = {kind: last["node_hours"].get(kind, 0.0) / wall for kind in (GPU, CPU)}
    found = Estimate(
        images=max(1, loose + round((encoded_bytes - loose_bytes) * density)),
        seconds=seconds,
        usd=usd_of(seconds, nodes, rates),
        runs=len(known),
    )
    if len(known) > 1:
        found["least_seconds"] = min(startups) + encoded_bytes * min(per_byte)
        found["most_seconds"] = max(startups) + encoded_bytes * max(per_byte)
    return found


def usd_of(seconds: float, nodes: Mapping[str, float], rates: Rates) -> float | None:
    """The cost of a run with so many nodes of each kind. None without a price."""
    hours = seconds / 3600
    cost = rates.bill({kind: count * hours for kind, count in nodes.items()}, hours)
    return None if cost is None else cost["usd"]


def as_text(found: Estimate | None) -> str:
    """The text that --dry-run prints."""
    if found is None:
        return (
            "not known before a first run over like images; --probe 200 measures it, unless the "
            "images are too few"
        )
    cost = "no price was given" if found["usd"] is None else f"{format_figure(found['usd'])} USD"
    time = format_duration(found["seconds"])
    images = counted(found["images"], "image")
    text = f"about {images}, {time}, {cost} (by {describe_source(found)})"
    if "least_seconds" not in found:
        return text
    return f"{text}\n{'':<14} {_interval_as_text(found)}"


def describe_source(found: Estimate) -> str:
    """What an estimate was made from."""
    if "probed" in found:
        return f"a probe of {counted(found['probed'], 'image')}"
    return "the last run" if found["runs"] == 1 else f"the last {found['runs']} runs"


def _interval_as_text(found: Estimate) -> str:
    """The least and the most that an estimated run takes, in time and money."""
    least, most = found["least_seconds"], found["most_seconds"]
    text = f"{format_duration(least)} to {format_duration(most)}"
    if found["usd"] is not None:
        usd = [format_figure(found["usd"] * one / found["seconds"]) for one in (least, most)]
        text += f", {usd[0]} to {usd[1]} USD"
    return f"{text} ({'95 %' if 'probed' in found else 'by the fastest and the slowest of them'})"


def accuracy(report: dict[str, Any]) -> str | None:
    """The error of the estimate of a finished run, as text. None if there was no estimate."""
    found = report.get("estimate")
    if not found:
        return None
    off = report["wall_seconds"] / found["seconds"] - 1
    return f"it took {abs(off):.0%} {'more' if off > 0 else 'less'}"
