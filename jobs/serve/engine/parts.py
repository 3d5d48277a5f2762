"""What the replicas that need no torch are made of: those that answer, and those that decode."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.resize import ResizeRule

# From an image's admission to its answer. A CPU computes an image of the largest model in 6 s.
SECONDS = 300.0


@dataclass(frozen=True)
class ServedModel:
    """A model as clients know it, and how much of it a replica may ask for at a time."""

    model: str  # the name that clients give
    labels: Sequence[str]  # class names by number; "" is a number that stands for no class
    max_queue: int  # images that wait or are computed
    calls: int = 4  # in flight, see joining.py
    large: int = 1  # of the images in flight
    seconds: float = SECONDS  # from an image's admission to its answer


@dataclass(frozen=True)
class DecodingSpec:
    """How images are decoded and resized."""

    resize: ResizeRule
    max_pixels: int  # of one image
    enlarge: bool  # whether images become larger before they reach the detector, as in `label`
