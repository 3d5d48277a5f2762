"""Ends a flow from which nothing comes any more.

Ray Data (2.60) repeats a task whose worker dies for ever. Where no worker can live (a full disk
under Ray's session folder, seen on 2026-11-25; no node of the kind that is asked for) a run would
hang without a word.
"""

import _thread
import os
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
# Between two receipts. More than the time limits of reading and detecting together, and than a
# cluster takes to make a node with a GPU. Tests need less.
STALL_SECONDS = float(os.environ.get("DETR_BATCH_STALL_SECONDS", "1800"))


class Stalled(RuntimeError):
    """Nothing came for too long."""


def unstalled(items: Iterable[Item], seconds: float = STALL_SECONDS) -> Iterator[Item]:
    """`items` as they come, on the main thread; Stalled where one takes longer than `seconds`."""
    late = threading.Event()

    def interrupt() -> None:
        late.set()
        _thread.interrupt_main()  # as Ctrl-C does, to which Ray's waiting answers

    iterator = iter(items)
    while True:
        timer = threading.Timer(seconds, interrupt)
        timer.daemon = True
        timer.start()
        try:
            item = next(iterator)
        except StopIteration:
            return
        except KeyboardInterrupt:
            if not late.is_set():
                raise
            raise Stalled(
                f"nothing was labelled for {seconds:.0f} s (DETR_BATCH_STALL_SECONDS): is there a "
                "node that detectors fit on, and room on its disks? Ray's own logs tell"
            ) from None
        finally:
            timer.cancel()
        yield item
