"""Images of many requests go to the detectors in common calls while there are more than fit.

A call costs the processes between a client and a detector 20 ms of a core, however many images it
has (two shared cores, 2026-11-28). While calls are free, each image goes alone and at once. When
none is free, images wait, and the next call takes several. The longer they have waited, the more.

Requests take turns, so that one with many images holds up none with few. A large image is decoded
for seconds: it goes alone, and only a few of them at a time, so that small ones pass by.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from jobs.serve.engine.engine import Labelled

MOST_IMAGES = 8  # of a call
MOST_PIXELS = 25_000_000  # of a call, or of the one image in it, which is large then
# Seconds that a detector computes for a call, so that no image waits long for others. Where images
# have waited before, it may be as long as this share of that time.
CALL_SECONDS, WAITED_SHARE = 0.2, 0.5

Call = Callable[[Sequence[bytes]], Awaitable[tuple[list[Labelled], float]]]


@dataclass
class _Entry:
    """An image that waits."""

    image: bytes
    pixels: int
    future: asyncio.Future[Labelled]
    came: float

    @property
    def is_large(self) -> bool:
        return self.pixels > MOST_PIXELS


class Joiner:
    """Shares a number of concurrent calls between all requests. One event loop may use it."""

    def __init__(self, call: Call, calls: int, large: int = 1):
        """`call` returns an answer for each image, and the seconds that an image took.

        At most `large` of the images that are under way at a time are large.
        """
        self._call, self._free = call, calls
        self._shares = max(1, calls // 2)  # the other half of the calls is for who comes next
        self._large_free = large
        self._waiting: deque[deque[_Entry]] = deque()  # of each request, whose turn it is first
        self._seconds = math.inf  # of one image, in the newest call
        self._under_way: set[asyncio.Task[None]] = set()

    async def detect(self, images: Sequence[tuple[bytes, int]]) -> list[Labelled]:
        """The answers of images, each with the pixels that it counts as.

        Raises what a call with one of them raises.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        entries = [_Entry(*image, loop.create_future(), now) for image in images]
        self._waiting.append(deque(entries))
        self._start_calls()
        try:
            return list(await asyncio.gather(*(entry.future for entry in entries)))
        finally:  # an error, or the client is gone: what still waits is not computed
            for entry in entries:
                entry.future.cancel()

    def _start_calls(self) -> None:
        while self._free and (entries := self._take()):
            self._free -= 1
            self._large_free -= entries[0].is_large
            task = asyncio.create_task(self._run(entries))
            self._under_way.add(task)  # the loop itself keeps no reference
            task.add_done_callback(self._under_way.discard)

    def _take(self) -> list[_Entry]:
        """The images of the next call: a fair share of those that wait, of each request in turn."""
        entries: list[_Entry] = []
        most, pixels = -(-sum(map(len, self._waiting)) // self._shares), 0
        passed: list[deque[_Entry]] = []  # requests whose next image does not fit into this call
        while self._waiting and len(entries) < most:
            request = self._waiting.popleft()
            while request and request[0].future.done():
                request.popleft()
            if not request:
                continue
            entry = request[0]
            fits = not entries or pixels + entry.pixels <= MOST_PIXELS
            if not fits or (entry.is_large and not self._large_free):
                passed.append(request)
                continue
            request.popleft()
            self._waiting.append(request)
            if not entries:
                most = min(most, self._most(time.monotonic() - entry.came))
            entries.append(entry)
            pixels += entry.pixels
        self._waiting.extendleft(reversed(passed))
        return entries

    def _most(self, waited: float) -> int:
        """How many images a call may have whose first one has waited for some seconds."""
        allowed = max(CALL_SECONDS, WAITED_SHARE * waited)
        return min(MOST_IMAGES, max(1, int(allowed / self._seconds)))

    async def _run(self, entries: list[_Entry]) -> None:
        try:
            answers, seconds = await self._call([entry.image for entry in entries])
            self._seconds = max(seconds, 1e-3)
            for entry, answer in zip(entries, answers, strict=True):
                if not entry.future.done():
                    entry.future.set_result(answer)
        except Exception as error:
            for entry in entries:
                if not entry.future.done():
                    entry.future.set_exception(error)
        finally:
            self._free += 1
            self._large_free += entries[0].is_large
            self._start_calls()
