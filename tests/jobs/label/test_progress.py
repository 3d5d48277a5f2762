"""The lines that a run writes to a log or a terminal while it goes on."""

import time

import pytest

from jobs.accounting.startup import Startup
from jobs.accounting.tally import Tally
from jobs.label.progress import describe, describe_end, show_progress
from pipeline.schema import Receipt


def receipt(images: int) -> Receipt:
    return Receipt("a", ("s",), images=images, detections=0, finished_at=time.time())


def test_the_last_line_of_a_short_run_does_not_say_that_it_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A single block gives no steady rate."""
    tally = Tally(startup=Startup(imports=10.0))
    show_progress([receipt(40)], tally, already=2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "42 images, 4.0 images/s, 0 failed"
    assert "starting" in describe(tally, 2, 0)


def test_a_run_without_receipts_ends_with_a_line_too() -> None:
    assert describe_end(Tally(), 7) == "7 images, 0.0 images/s, 0 failed"
