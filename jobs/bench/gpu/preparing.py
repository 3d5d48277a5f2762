"""What preparers cost: cores that decode photos, with and without enlarging them for the model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from jobs.bench.measure import interleaved
from model.config import PUBLISHED_RESIZE
from model.cpu_threads import use_cpu_threads
from pipeline.schema import OK
from pipeline.stages.decode import decode_row
from pipeline.stages.tiling import MAX_PIXELS
from pipeline.storage.errors import CommandFailed

WAYS = {"decode": False, "decode and resize": True}  # whether the preparer enlarges images


@dataclass(frozen=True)
class Cost:
    """What a way to prepare photos costs."""

    seconds: list[float]  # of one core, for all photos, each time
    bytes_per_image: float  # of pixels, which cross to the detector

    def cores(self, images: int) -> float:
        """Cores that prepare 1,000 images a second, if a time is that of so many `images`."""
        return 1e3 * median(self.seconds) / images


def measure_preparing(photos: Sequence[bytes], seconds: float) -> dict[str, Cost]:
    """Prepare photos for the published models in each of WAYS, in turn, on one core.

    CommandFailed if a photo cannot be decoded.
    """
    use_cpu_threads(1)
    sizes = {way: _prepare(photos, enlarge) for way, enlarge in WAYS.items()}
    subjects: dict[str, Callable[[], float]] = {
        way: partial(_time, photos, enlarge) for way, enlarge in WAYS.items()
    }
    took = interleaved(subjects, seconds)
    return {way: Cost(took[way], sizes[way] / len(photos)) for way in WAYS}


def _time(photos: Sequence[bytes], enlarge: bool) -> float:
    began = time.process_time()
    _prepare(photos, enlarge)
    return time.process_time() - began


def _prepare(photos: Sequence[bytes], enlarge: bool) -> int:
    """Prepare all photos, one after the other; return the bytes of their pixels."""
    size = 0
    for photo in photos:
        row = decode_row(photo, PUBLISHED_RESIZE, MAX_PIXELS, enlarge)
        if row["status"] != OK:
            raise CommandFailed(f"a photo of the bench cannot be decoded: {row['error']}")
        size += len(row["pixels"])
    return size
