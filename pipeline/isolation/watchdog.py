"""A watchdog that ends a flow that delivers no more results.

Ray Data (2.60) repeats a task whose worker dies for ever. If no worker can live, a run would hang
without a message. Examples are a full disk under Ray's session folder (seen on 2026-11-25), and a
cluster without a node of the requested kind.
"""

import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from pipeline.storage.environment import number_of_variable

Item = TypeVar("Item")
# Longest time between two receipts. It is longer than the time limits of reading and detecting
# together, and longer than a cluster needs to create a node with a GPU. Tests set a shorter time.
STALL_SECONDS = number_of_variable("DETR_BATCH_STALL_SECONDS", 1800)


class Stalled(RuntimeError):
    """The flow delivered no result within the time limit, in seconds."""

    def __init__(self, seconds: float):
        super().__init__(
            f"nothing was labelled for {seconds:.0f} s (DETR_BATCH_STALL_SECONDS): is there a "
            "node that detectors fit on, and room on its disks? Ray's own logs tell"
        )


def end_when_stalled(items: Iterable[Item], seconds: float = STALL_SECONDS) -> Iterator[Item]:
    """Yield `items` as they arrive. Raises Stalled if one takes longer than `seconds` seconds.

    The time limit holds only on the main thread, where an alarm interrupts the wait as Ctrl-C does.
    On other threads there is no time limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield from items
        return

    def interrupt(*_: object) -> None:
        raise Stalled(seconds)

    previous_handler = signal.signal(signal.SIGALRM, interrupt)
    iterator = iter(items)
    try:
        while True:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            yield item
    finally:
        signal.signal(signal.SIGALRM, previous_handler)
