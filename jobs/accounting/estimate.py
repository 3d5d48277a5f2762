"""The estimated time and cost of a run, from earlier runs, and the error of that estimate."""

from statistics import median
from typing import Any, TypedDict

from jobs.accounting.counted import counted
from jobs.accounting.node_hours import CPU, GPU, Rates

RUNS = 5  # the estimate takes medians over this many of the newest runs


class Estimate(TypedDict):
    """The estimate of a planned run."""

    images: int
    seconds: float  # start-up included
    usd: float | None  # None without a price
    runs: int  # number of runs that the estimate was made from


def estimate(reports: list[dict[str, Any]], encoded_bytes: int, rates: Rates) -> Estimate | None:
    """Estimate a run from reports of earlier runs, oldest first. None if no report has enough data.

    The time is the start-up time plus a time for each byte. Bytes are used because the number of
    images in an archive is not known before it is read.
    """
    known = [
        report
        for report in reports
        if report.get("encoded_bytes") and report.get("startup_seconds") is not None
    ][-RUNS:]
    if not known:
        return None
    startup = median(report["startup_seconds"] for report in known)
    per_byte = median(
        max(0.0, report["wall_seconds"] - report["startup_seconds"]) / report["encoded_bytes"]
        for report in known
    )
    labelled = [report["images"] - report["labelled_before"] for report in known]
    density = median(
        images / report["encoded_bytes"] for images, report in zip(labelled, known, strict=True)
    )
    seconds = startup + encoded_bytes * per_byte
    hours = seconds / 3600
    last = known[-1]
    wall = last["wall_seconds"] / 3600
    nodes = {kind: last["node_hours"].get(kind, 0.0) / wall * hours for kind in (GPU, CPU)}
    cost = rates.bill(nodes, hours)
    return Estimate(
        images=round(encoded_bytes * density),
        seconds=seconds,
        usd=None if cost is None else cost["usd"],
        runs=len(known),
    )


def as_text(found: Estimate | None) -> str:
    """The text that --dry-run prints."""
    if found is None:
        return "not known before a first run over like images; --limit 100 makes a small one"
    usd = "no price was given" if found["usd"] is None else f"{found['usd']:.4f} USD"
    runs = "the last run" if found["runs"] == 1 else f"the last {found['runs']} runs"
    return f"about {counted(found['images'], 'image')}, {found['seconds']:.0f} s, {usd} (by {runs})"


def accuracy(report: dict[str, Any]) -> str | None:
    """The error of the estimate of a finished run, as text. None if there was no estimate."""
    found = report.get("estimate")
    if not found:
        return None
    off = report["wall_seconds"] / found["seconds"] - 1
    return f"it took {abs(off):.0%} {'more' if off > 0 else 'less'}"
