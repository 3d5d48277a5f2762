"""Facts of runs, as a command tells them."""

from collections import Counter
from typing import Any

from jobs.accounting.node_hours import Rates
from jobs.accounting.tally import Tally, report
from jobs.label.notify.announced_run import AnnouncedCommand, AnnouncedRun, Ending
from pipeline.schema import Receipt
from pipeline.stages.publish import PartFile

RUN_ID = "20260101T000000Z-aaaaaa"
OUTPUT = "s3://key:5ecre7@lake/labels"


def begun_run(**other: Any) -> AnnouncedRun:
    facts = {"resumed": False, "objects": 6, "encoded_bytes": 1000, **other}
    return AnnouncedRun(RUN_ID, "shapes-tiny", "0123456789abcdef", "fp32 on cpu", **facts)


def published_run(**other: Any) -> AnnouncedRun:
    """A run of 5 images with 9 boxes, and one image that failed. It cost 7.20 USD."""
    run, tally = begun_run(**other), Tally()
    tally.add(Receipt("a", ("s",), images=6, detections=9, failed={"undecodable": 1}))
    workers = dict.fromkeys(("read", "prepare", "detect", "stage"), 1)
    counts = dict(Counter(ok=5, undecodable=1))
    hours = {"gpu": 1.0, "cpu": 0.0}
    made = report(tally, counts, 9, workers, hours, 1.0, Rates(usd_per_hour=7.2))
    files = [PartFile(f"images/run={RUN_ID}/part-0.parquet", 6, 600, "a")]
    files += [PartFile(f"detections/run={RUN_ID}/part-{i}.parquet", 3, 100, "b") for i in range(3)]
    run.publish(made, files)
    return run


def failed_run(error: str, interrupted: bool = False) -> AnnouncedRun:
    """A run that ended after two images, one of which failed."""
    run = begun_run(resumed=True)
    run.so_far = lambda: {"images": 2, "failed": {"truncated": 1}, "detections": 4, "usd": 0.5}
    run.fail(error, interrupted)
    return run


def kept_run() -> AnnouncedRun:
    """A run that a budget ended within its first archive."""
    run = begun_run()
    run.so_far = lambda: {"images": 4, "failed": {}, "detections": 4, "usd": 0.5}
    run.keep("--max-hours 1")
    return run


def command(*runs: AnnouncedRun, ending: Ending | None = None) -> AnnouncedCommand:
    return AnnouncedCommand("s3://lake/photos", OUTPUT, True, runs, ending or Ending(0))
