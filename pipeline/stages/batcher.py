"""Batches that are filled by all calls of one detector that are in flight.

A call adds its images and waits until they are done. One thread forms the batches:

- As soon as enough images of one canvas wait, they are a batch, whichever calls they are of.
- When no canvas has enough, and either no further call can come or the device has nothing to do,
  the image that waits longest goes with what there is of its canvas. So nothing is held back at
  the end of the input.
"""

import atexit
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.stages.recovery import Image, Outcome, RecoveringDetector, UnderWay
from pipeline.storage.errors import CommandFailed

CLOSE_SECONDS = 5.0  # time limit for the batch under way when the process ends

T = TypeVar("T")


class WaitingRoom(Generic[T]):
    """Images that wait for a batch of `count` images of one canvas: first come, first served."""

    def __init__(self, count: int):
        self.count = count
        self._queues: dict[Hashable, deque[tuple[int, T]]] = {}
        self._came = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, canvas: Hashable, image: T) -> None:
        """Let an image wait."""
        self._queues.setdefault(canvas, deque()).append((self._came, image))
        self._came += 1

    def take_full_batch(self) -> list[T]:
        """Take the images of a whole batch, or none: of canvases with enough, the first come."""
        return self._take([c for c, queue in self._queues.items() if len(queue) >= self.count])

    def take_oldest(self) -> list[T]:
        """Take the image that waits longest, and those of its canvas that fit into its batch."""
        return self._take(list(self._queues))

    def _take(self, canvases: list[Hashable]) -> list[T]:
        if not canvases:
            return []
        first = min(canvases, key=lambda canvas: self._queues[canvas][0][0])
        queue = self._queues[first]
        taken = [queue.popleft()[1] for _ in range(min(self.count, len(queue)))]
        if not queue:
            del self._queues[first]
        return taken


@dataclass
class _Call:
    """A call in flight, and the outcomes of its images so far."""

    outcomes: list[Outcome | None]
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.outcomes)


@dataclass(frozen=True)
class _Entry:
    """One image of a call."""

    call: _Call
    position: int
    image: Image


class Batcher:
    """Runs a detector for several calls at a time, at most `calls`."""

    def __init__(
        self,
        detector: RecoveringDetector,
        calls: int,
        start: Callable[[], None] = lambda: None,
    ):
        """`start` is called in the thread that computes, before anything else."""
        self.detector, self.calls, self.start = detector, calls, start
        self._changed = threading.Condition()
        self._waiting: WaitingRoom[_Entry] = WaitingRoom(detector.detector.count)
        self._suspects: deque[_Entry] = deque()
        self._in_flight = 0
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="batches")
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """End the thread. Python aborts if it ends while a thread of its own is within torch."""
        atexit.unregister(self.close)  # which kept this object, and so its detector, in memory
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)

    def detect(self, images: Sequence[Image]) -> list[Outcome]:
        """Detect in images, together with those of other calls. One outcome for each image.

        Raises what ended the detector, such as OutOfMemory.
        """
        call = _Call([None] * len(images))
        with self._changed:
            self._in_flight += 1
            for position, image in enumerate(images):
                self._add(_Entry(call, position, image))
            self._changed.notify_all()
            self._changed.wait_for(lambda: not call.left or self._error is not None)
            self._in_flight -= 1
            self._changed.notify_all()
            if isinstance(self._error, Exception):
                raise self._error
            if self._error is not None:  # Ray would start an actor anew that raises SystemExit
                kind = type(self._error).__name__
                raise CommandFailed(f"the detector ended: {kind}: {self._error}") from self._error
        return [outcome for outcome in call.outcomes if outcome is not None]

    def _add(self, entry: _Entry) -> None:
        if not self.detector.ended_a_process(entry.image):
            self._waiting.add(self.detector.canvas(entry.image), entry)
        elif refused := self.detector.refuse(entry.image):
            self._deliver(entry, refused)
        else:
            self._suspects.append(entry)

    def _run(self) -> None:
        try:
            self.start()
            under_way: deque[tuple[list[_Entry], UnderWay]] = deque()
            is_cold = True
            while not self._closed:
                entries, alone = self._take_next(idle=not under_way, wait=not is_cold)
                if not entries and not under_way and is_cold:
                    is_cold = self.detector.warm_up()
                if entries:
                    images = [entry.image for entry in entries]
                    under_way.append((entries, self.detector.submit(images)))
                # Without a batch to submit, the oldest one under way is waited for.
                ahead = self.detector.detector.ahead if entries else max(0, len(under_way) - 1)
                while len(under_way) > (0 if alone else ahead):
                    self._finish(*under_way.popleft())
        except BaseException as error:  # every call raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _take_next(self, idle: bool, wait: bool) -> tuple[list[_Entry], bool]:
        """The entries of the next batch, and whether it must be computed alone.

        There are none if a batch under way must be finished first, or if no image waits and this
        shall not `wait` for one. An image during which a process ended is computed alone, so that
        no other image is blamed if that happens again.
        """
        with self._changed:
            while not self._closed:
                if self._suspects:
                    return ([self._suspects.popleft()] if idle else []), True
                if full := self._waiting.take_full_batch():
                    return full, False
                if self._waiting and (idle or self._in_flight >= self.calls):
                    return self._waiting.take_oldest(), False
                if not (idle and wait):
                    return [], False
                self._changed.wait()
            return [], False

    def _finish(self, entries: list[_Entry], batch: UnderWay) -> None:
        outcomes = self.detector.finish(batch)
        with self._changed:
            for entry, outcome in zip(entries, outcomes, strict=True):
                self._deliver(entry, outcome)

    def _deliver(self, entry: _Entry, outcome: Outcome) -> None:
        entry.call.outcomes[entry.position] = outcome
        entry.call.left -= 1
        if not entry.call.left:
            self._changed.notify_all()
