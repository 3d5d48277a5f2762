"""How many images an engine holds: what is too much is refused at once, and never waits."""

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.serve.engine import Overloaded


class Admission:
    """Counts images that wait or are computed. One event loop may use it."""

    def __init__(self, most: int):
        self.most = most
        self.held = 0

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold images during the block. Raises Overloaded if there are too many then."""
        if self.held + images > self.most:
            raise Overloaded(f"{self.held} images wait or are computed, of at most {self.most}")
        self.held += images
        try:
            yield
        finally:
            self.held -= images
