"""Progress of a run: a live line on a terminal, plain lines in a log. All on stderr."""

import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from jobs.run_record import Tally
from pipeline.schema import Receipt

LOG_SECONDS = 10.0  # between plain lines


def describe(tally: Tally, already: int) -> str:
    """Images done, rate, failed."""
    rate = tally.steady_rate()
    speed = f"{rate:.1f} images/s" if rate else "starting"
    return f"{already + tally.images} images, {speed}, {tally.failed.total()} failed"


def show(receipts: Iterable[Receipt], tally: Tally, already: int = 0) -> None:
    """Add up `receipts` into `tally` as they come; `already` images were done before."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said = time.monotonic()
        for receipt in receipts:
            tally.add(receipt)
            if time.monotonic() - said > LOG_SECONDS:
                said = time.monotonic()
                console.print(describe(tally, already), highlight=False)
        console.print(describe(tally, already), highlight=False)
        return
    with Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("starting Ray's workers", total=None)
        for receipt in receipts:
            tally.add(receipt)
            bar.update(task, description=describe(tally, already))
