"""How many images an engine holds: what is too much is refused at once, and never waits."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.serve.engine.engine import Overloaded

SHORTEST, LONGEST = 1.0, 30.0  # seconds after which a refused client shall ask again
NEWEST = 0.2  # weight of the newest answer in the mean time of answers


class Admission:
    """Counts images that wait or are computed. One event loop may use it."""

    def __init__(self, most: int):
        self.most = most
        self.held = 0
        self._seconds = 0.0  # from an admission to its answer, a moving mean

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold images during the block. Raises Overloaded if there are too many then."""
        self.check(images)
        self.held += images
        began = time.monotonic()
        try:
            yield
        finally:
            self.held -= images
            self._seconds += NEWEST * (time.monotonic() - began - self._seconds)

    def check(self, images: int) -> None:
        """Raise Overloaded if these images would be too many now.

        Clients are to come again when what waits now is answered, and not all at once, because
        refusals take the cores on which images are decoded.
        """
        if self.held + images > self.most:
            seconds = random.uniform(1, 2) * min(LONGEST, max(SHORTEST, self._seconds))
            message = f"{self.held} images wait or are computed, of at most {self.most}"
            raise Overloaded(message, seconds)
