"""Progress of a run on stderr: a live line on a terminal, lines with the time elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from jobs.accounting.plurals import counted
from jobs.accounting.tally import Tally
from jobs.label.log.lines import print_line
from pipeline.schema import Receipt
from pipeline.storage.clock import steady_time

# Between two lines of a log: a twentieth of the time so far, within these bounds. A run of eight
# hours has about 150 lines.
SHORTEST_PAUSE, LONGEST_PAUSE = 10.0, 300.0


def describe(tally: Tally, already: int, encoded_bytes: int) -> str:
    """One line: images done, rate, failed images, time left."""
    rate = tally.steady_rate()
    speed = f"{rate:.1f} images/s" if rate else "starting"
    text = f"{counted(already + tally.images, 'image')}, {speed}, {tally.failed.total()} failed"
    left = tally.seconds_left(encoded_bytes)
    if left:
        text += f", about {timedelta(seconds=round(left))} left"
    return text


def describe_end(tally: Tally, already: int) -> str:
    """The last line: images done, rate, failed images.

    The rate is that since the start if there is no steady rate.
    """
    seconds = steady_time() - tally.started
    rate = tally.steady_rate() or tally.images / max(seconds, 1e-9)
    images = counted(already + tally.images, "image")
    return f"{images}, {rate:.1f} images/s, {tally.failed.total()} failed"


def show_progress(
    receipts: Iterable[Receipt], tally: Tally, already: int = 0, encoded_bytes: int = 0
) -> None:
    """Add `receipts` to `tally` as they arrive, and show progress.

    `already` images were done before. The others have about `encoded_bytes`, from which the time
    left is computed (0: not known).
    """
    if not sys.stderr.isatty():
        started = last_line = time.monotonic()
        said = ""
        with _lines_before_the_first(tally) as has_line:
            for receipt in receipts:
                _add(receipt, tally, print_line)
                now = time.monotonic()
                is_due = now - last_line > pause_between_lines(now - started)
                if is_due and tally.steady_rate():  # the first block alone gives no rate
                    has_line.set()
                    last_line, said = now, describe(tally, already, encoded_bytes)
                    print_line(said)
        if (end := describe_end(tally, already)) != said:
            print_line(end)
        return
    console = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("starting Ray's workers", total=None)
        for receipt in receipts:
            _add(receipt, tally, partial(console.print, highlight=False))
            bar.update(task, description=describe(tally, already, encoded_bytes))
        bar.update(task, description=describe_end(tally, already))


@contextmanager
def _lines_before_the_first(tally: Tally) -> Iterator[threading.Event]:
    """Print a line now and then as a sign of life until the event that this yields is set."""
    has_line = threading.Event()

    def wait() -> None:
        pause = SHORTEST_PAUSE
        while not has_line.wait(pause):
            print_line(
                f"{counted(tally.images, 'image')} so far: workers start, and the first images "
                "take longest"
            )
            pause = min(2 * pause, LONGEST_PAUSE)

    thread = threading.Thread(target=wait, name="progress", daemon=True)
    thread.start()
    try:
        yield has_line
    finally:
        has_line.set()
        thread.join()


def pause_between_lines(seconds: float) -> float:
    """The seconds from a line of a log to the next, where a run has taken `seconds` so far."""
    return min(max(seconds / 20, SHORTEST_PAUSE), LONGEST_PAUSE)


def _add(receipt: Receipt, tally: Tally, show: Callable[[str], None]) -> None:
    """Add one receipt. Show a line if its detector computes otherwise than those before."""
    before = list(tally.computations)
    tally.add(receipt)
    if before and receipt.computation not in (None, *before):
        show(
            f"some images are computed in {receipt.computation}, others in {', '.join(before)}: "
            "their last digits may differ"
        )
