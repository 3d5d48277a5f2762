"""How many images an engine holds: what is too much is refused at once, and never waits.

A request is refused at its head, before its body is read. So one whose body still comes has a place
too, and of a thousand clients that come at once only `most` send their images.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.serve.engine.engine import Overloaded

SHORTEST, LONGEST = 1.0, 30.0  # seconds after which a refused client shall ask again
PIXELS_PER_IMAGE = 16_000_000  # of all images that are held, for each that may be
NEWEST = 0.2  # weight of the newest answer in the mean time of answers


class Admission:
    """Counts images that wait or are computed, and requests whose images are not known yet.

    There are at most `most` of each. One event loop may use it.
    """

    def __init__(self, most: int):
        self.most = most
        self.held = self.pixels = self.expected = 0
        self._seconds = 0.0  # from an admission to its answer, a moving mean

    def expect(self) -> Callable[[], None]:
        """Take a place for a request whose images are not known yet. Raises Overloaded.

        What is returned gives the place back; it may be called again.
        """
        self.check(1)
        if self.expected >= self.most:
            raise self._overloaded(f"{self.expected} requests come in, of at most {self.most}")
        self.expected += 1
        taken = True

        def leave() -> None:
            nonlocal taken
            self.expected -= taken
            taken = False

        return leave

    @contextmanager
    def admit(self, images: int, pixels: int = 0) -> Iterator[None]:
        """Hold images during the block. Raises Overloaded if they are too many then.

        Their pixels count too, because they take the time; but one request may have any number.
        """
        self.check(images)
        if self.pixels and self.pixels + pixels > self.most * PIXELS_PER_IMAGE:
            text = f"images of {self.pixels} pixels wait or are computed"
            raise self._overloaded(text)
        self.held += images
        self.pixels += pixels
        began = time.monotonic()
        try:
            yield
        finally:
            self.held -= images
            self.pixels -= pixels
            self._seconds += NEWEST * (time.monotonic() - began - self._seconds)

    def check(self, images: int) -> None:
        """Raise Overloaded if these images would be too many now."""
        if self.held + images > self.most:
            text = f"{self.held} images wait or are computed, of at most {self.most}"
            raise self._overloaded(text)

    def _overloaded(self, message: str) -> Overloaded:
        """Clients are to come again when what waits now is answered, and not all at once, because
        refusals take the cores on which images are decoded.
        """
        seconds = random.uniform(1, 2) * min(LONGEST, max(SHORTEST, self._seconds))
        return Overloaded(message, seconds)
