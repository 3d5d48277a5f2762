"""A watchdog that ends a flow that delivers no more results.

Ray Data (2.60) repeats a task whose worker dies for ever. If no worker can live, a run would hang
without a message. Examples are a full disk under Ray's session folder (seen on 2026-11-25), and a
cluster without a node of the requested kind.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
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


def end_when_stalled(
    items: Iterable[Item],
    seconds: float = STALL_SECONDS,
    left: Callable[[], float] | None = None,
) -> Iterator[Item]:
    """Yield `items` as they arrive. Raises Stalled if one takes longer than `seconds` seconds.

    `left` says how many seconds remain for all of them. The items end when none do, also while one
    is waited for.

    The time limits hold only on the main thread, where an alarm interrupts the wait as Ctrl-C does.
    On other threads `left` is asked behind each item.
    """
    remaining = left or (lambda: math.inf)
    if threading.current_thread() is not threading.main_thread():
        for item in items:
            yield item
            if remaining() <= 0:
                return
        return
    alarm = _Alarm(seconds, remaining)
    previous_handler = signal.signal(signal.SIGALRM, alarm.ring)
    iterator = iter(items)
    try:
        while alarm.begin():
            try:
                item = next(iterator)
            except StopIteration:
                return
            except Exception:
                if alarm.is_time_up:  # a library may have wrapped it
                    return
                raise
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            yield item
    finally:
        signal.signal(signal.SIGALRM, previous_handler)
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


class _TimeIsUp(Exception):
    """No time is left for further items."""


class _Alarm:
    """Interrupts the wait for an item."""

    def __init__(self, seconds: float, left: Callable[[], float]):
        self.seconds, self.left = seconds, left
        self.is_time_up = False
        self._stalled = 0.0

    def begin(self) -> bool:
        """Set the alarm for one item. False if no time is left."""
        left = self.left()
        self.is_time_up = left <= 0
        self._stalled = time.monotonic() + self.seconds
        if not self.is_time_up:
            signal.setitimer(signal.ITIMER_REAL, min(self.seconds, left))
        return not self.is_time_up

    def ring(self, *_: object) -> None:
        """Raise _TimeIsUp or Stalled; else there is time again, and the alarm is set again."""
        wait, left = self._stalled - time.monotonic(), self.left()
        self.is_time_up = left <= 0
        if self.is_time_up:
            raise _TimeIsUp
        if wait <= 0:
            raise Stalled(self.seconds)
        signal.setitimer(signal.ITIMER_REAL, min(wait, left))
