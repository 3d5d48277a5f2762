"""Progress of a run: a live line on a terminal, plain lines in a log. All on stderr."""

import time
from collections.abc import Iterable
from datetime import timedelta

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from jobs.accounting.tally import Tally
from pipeline.schema import Receipt

LOG_SECONDS = 10.0  # between plain lines


def describe(tally: Tally, already: int, encoded_bytes: int) -> str:
    """Images done, rate, failed, time left."""
    rate = tally.steady_rate()
    speed = f"{rate:.1f} images/s" if rate else "starting"
    text = f"{already + tally.images} images, {speed}, {tally.failed.total()} failed"
    left = tally.seconds_left(encoded_bytes)
    if left:
        text += f", about {timedelta(seconds=round(left))} left"
    return text


def describe_end(tally: Tally, already: int) -> str:
    """The last line: images done, rate, failed. Without a steady rate, that from the start on."""
    seconds = time.time() - tally.started
    rate = tally.steady_rate() or tally.images / max(seconds, 1e-9)
    return f"{already + tally.images} images, {rate:.1f} images/s, {tally.failed.total()} failed"


def show_progress(
    receipts: Iterable[Receipt], tally: Tally, already: int = 0, encoded_bytes: int = 0
) -> None:
    """Add up `receipts` into `tally` as they come.

    `already` images were done before; the rest lie in about `encoded_bytes`, which tell how long
    it will take (0: not known).
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        said = time.monotonic()
        for receipt in receipts:
            _add(receipt, tally, console)
            if time.monotonic() - said > LOG_SECONDS:
                said = time.monotonic()
                console.print(describe(tally, already, encoded_bytes), highlight=False)
        console.print(describe_end(tally, already), highlight=False)
        return
    with Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("starting Ray's workers", total=None)
        for receipt in receipts:
            _add(receipt, tally, console)
            bar.update(task, description=describe(tally, already, encoded_bytes))
        bar.update(task, description=describe_end(tally, already))


def _add(receipt: Receipt, tally: Tally, console: Console) -> None:
    """Add up one receipt, and say so where it is the first to tell of too little memory."""
    known = tally.batch_limit
    tally.add(receipt)
    if known is None and tally.batch_limit is not None:
        console.print(
            "the memory of a detector does not hold as many pictures as --batch-size says: "
            f"it takes {tally.batch_limit} at once from now on",
            highlight=False,
        )
