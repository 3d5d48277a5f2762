"""Images of many requests go to the detectors in common calls while there are more than fit.

A call costs the processes between a client and a detector 20 ms of a core, however many images it
has (two shared cores, 2026-11-28). While calls are free, each image goes alone and at once. When
none is free, images wait, and the next call takes several. The longer they have waited, the more.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from jobs.serve.engine.engine import Labelled

MOST_IMAGES = 8  # of a call
# Seconds that a detector computes for a call, so that no image waits long for others. Where images
# have waited before, it may be as long as this share of that time.
CALL_SECONDS, WAITED_SHARE = 0.2, 0.5

Call = Callable[[Sequence[bytes]], Awaitable[tuple[list[Labelled], float]]]


class Joiner:
    """Shares a number of concurrent calls between all requests. One event loop may use it."""

    def __init__(self, call: Call, calls: int):
        """`call` returns an answer for each image, and the seconds that an image took."""
        self._call, self._free = call, calls
        self._shares = max(1, calls // 2)  # the other half of the calls is for who comes next
        self._waiting: deque[tuple[bytes, asyncio.Future[Labelled], float]] = deque()
        self._seconds = math.inf  # of one image, in the newest call
        self._under_way: set[asyncio.Task[None]] = set()

    async def detect(self, images: Sequence[bytes]) -> list[Labelled]:
        """The answers of images. Raises what a call with one of them raises."""
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        entries = [(image, loop.create_future(), now) for image in images]
        self._waiting.extend(entries)
        self._start_calls()
        try:
            return list(await asyncio.gather(*(future for _, future, _ in entries)))
        finally:  # an error, or the client is gone: what still waits is not computed
            for _, future, _ in entries:
                future.cancel()

    def _start_calls(self) -> None:
        while self._free and (entries := self._take()):
            self._free -= 1
            task = asyncio.create_task(self._run(entries))
            self._under_way.add(task)  # the loop itself keeps no reference
            task.add_done_callback(self._under_way.discard)

    def _take(self) -> list[tuple[bytes, asyncio.Future[Labelled]]]:
        """The images of the next call: a fair share of those that wait."""
        entries: list[tuple[bytes, asyncio.Future[Labelled]]] = []
        most = -(-len(self._waiting) // self._shares)
        while self._waiting and len(entries) < most:
            image, future, came = self._waiting.popleft()
            if not entries:  # the one that has waited longest
                most = min(most, self._most(time.monotonic() - came))
            if not future.done():
                entries.append((image, future))
        return entries

    def _most(self, waited: float) -> int:
        """How many images a call may have whose first one has waited for some seconds."""
        allowed = max(CALL_SECONDS, WAITED_SHARE * waited)
        return min(MOST_IMAGES, max(1, int(allowed / self._seconds)))

    async def _run(self, entries: list[tuple[bytes, asyncio.Future[Labelled]]]) -> None:
        try:
            answers, seconds = await self._call([image for image, _ in entries])
            self._seconds = max(seconds, 1e-3)
            for (_, future), answer in zip(entries, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except Exception as error:
            for _, future in entries:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._free += 1
            self._start_calls()
