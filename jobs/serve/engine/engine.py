"""From the bytes of an image to its detections: what the HTTP side needs of the detectors.

`InProcessEngine` computes in this process, without Ray: for tests and measurements. The endpoint
has `ServeEngine` (serve_engine.py), which asks replicas of Ray Serve.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.schema import OK

Box = tuple[float, float, float, float]


class Overloaded(Exception):
    """As many images wait as may. The caller answers at once, and its client tries again later."""

    def __init__(self, message: str, seconds: float = 1.0):
        """`seconds` is the time after which it is worth trying again."""
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True)
class Labelled:
    """The detections of one image, at a threshold of 0 and best first, or why there are none."""

    status: str  # OK, or a reason of pipeline/schema.py
    error: str | None = None
    width: int | None = None  # pixels of the upright image
    height: int | None = None
    labels: Sequence[str] = ()
    scores: Sequence[float] = ()
    boxes: Sequence[Box] = ()  # x_min, y_min, x_max, y_max in pixels of the upright image

    @property
    def is_ok(self) -> bool:
        return self.status == OK


class Engine(Protocol):
    """Detects in images. An image that cannot be read raises nothing: its answer says so."""

    model: str  # the name that clients give
    labels: Sequence[str]  # class names by number; "" is a number that stands for no class

    def expect(self) -> Callable[[], None]:
        """Take a place for a request whose images are not known yet. Raises Overloaded.

        What is returned gives the place back; it may be called again.
        """
        ...

    async def detect_all(
        self, images: Sequence[bytes], pixels: Sequence[int] = ()
    ) -> list[Labelled]:
        """Detect in image files: one answer for each. Raises Overloaded for all, or for none.

        `pixels` is what each of them counts as (pixels.py); none: they count as small.
        """
        ...
