"""Ends a flow from which nothing comes any more.

Ray Data (2.60) repeats a task whose worker dies for ever. Where no worker can live (a full disk
under Ray's session folder, seen on 2026-11-25; no node of the kind that is asked for) a run would
hang without a word.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
# Between two receipts. More than the time limits of reading and detecting together, and than a
# cluster takes to make a node with a GPU. Tests need less.
STALL_SECONDS = float(os.environ.get("DETR_BATCH_STALL_SECONDS", "1800"))


class Stalled(RuntimeError):
    """Nothing came for too long."""


def end_when_stalled(items: Iterable[Item], seconds: float = STALL_SECONDS) -> Iterator[Item]:
    """`items` as they come; Stalled where one takes longer than `seconds`.

    On the main thread alone, whose waiting an alarm interrupts as Ctrl-C does; elsewhere nobody
    watches.
    """
    if threading.current_thread() is not threading.main_thread():
        yield from items
        return

    def interrupt(*_: object) -> None:
        raise Stalled(
            f"nothing was labelled for {seconds:.0f} s (DETR_BATCH_STALL_SECONDS): is there a "
            "node that detectors fit on, and room on its disks? Ray's own logs tell"
        )

    before = signal.signal(signal.SIGALRM, interrupt)
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
        signal.signal(signal.SIGALRM, before)
