"""`detr-batch report`: what the last committed run did, and what it cost."""

from typing import Any

from jobs.run_record import read_document
from pipeline.publish import committed_runs
from pipeline.storage import InputError


def last_report(output: str) -> dict[str, Any]:
    """report.json of the newest committed run, with its `run_id`. InputError without one."""
    runs = committed_runs(output)
    if not runs:
        raise InputError(f"{output} holds no finished run: `detr-batch label` makes one")
    run_id = runs[-1]["run_id"]
    return {"run_id": run_id, **read_document(output, run_id, "report.json")}


def as_text(report: dict[str, Any]) -> str:
    """The report for people, a fact a line."""
    steady = report["images_per_second_steady"]
    cost = report["usd_per_1000_images"]
    before = report["labelled_before"]
    stages = report["seconds_by_stage"].items()
    lines = [
        f"run            {report['run_id']}",
        f"images         {report['images']} ({report['ok']} labelled)",
        *([f"  before       {before} by a run that was killed"] if before else []),
        *(f"  failed       {count} {reason}" for reason, count in sorted(report["failed"].items())),
        f"detections     {report['detections']}",
        f"wall time      {report['wall_seconds']:.1f} s",
        f"throughput     {report['images_per_second']:.2f} images/s, start-up included",
        "  steady       " + ("one block: no rate" if steady is None else f"{steady:.2f} images/s"),
        *(f"  {stage:<12} {seconds:.1f} s of workers' time" for stage, seconds in stages),
        f"retries        {report['storage_retries']} requests to stores were repeated",
        f"device use     {report['device_use']:.0%} of the wall time",
        "cost           "
        + (
            "not known: give label --instance-type or --usd-per-hour"
            if cost is None
            else f"{cost:.4f} USD per 1,000 images at {report['usd_per_hour']:g} USD an hour "
            f"({report['price_basis']})"
        ),
    ]
    return "\n".join(lines)
