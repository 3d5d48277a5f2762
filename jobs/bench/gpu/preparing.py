"""What preparers cost: cores that decode photos, enlarge them too, or read their headers alone."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from jobs.bench.measure import interleaved
from model.config import PUBLISHED_RESIZE
from model.cpu_threads import use_cpu_threads
from pipeline.schema import OK
from pipeline.stages.decode import decode_row, header_row
from pipeline.stages.tiling import MAX_PIXELS
from pipeline.storage.errors import CommandFailed


def _read_header(photo: bytes) -> dict[str, Any]:
    """The row of a JPEG that is left to the detector, which gets its bytes."""
    row = header_row(photo, PUBLISHED_RESIZE, MAX_PIXELS, None)
    return {**(row or {"status": None, "error": "it is no plain JPEG"}), "pixels": photo}


# What a preparer does with a photo, as GPUs, CPUs, and GPUs that decode (--decode gpu) take it.
WAYS: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "decode": partial(decode_row, resize=PUBLISHED_RESIZE, max_pixels=MAX_PIXELS, enlarge=False),
    "decode and resize": partial(decode_row, resize=PUBLISHED_RESIZE, max_pixels=MAX_PIXELS),
    "read the header": _read_header,
}


@dataclass(frozen=True)
class Cost:
    """What a way to prepare photos costs."""

    seconds: list[float]  # of one core, for all photos, each time
    bytes_per_image: float  # which cross to the detector

    def cores(self, images: int) -> float:
        """Cores that prepare 1,000 images a second, if a time is that of so many `images`."""
        return 1e3 * median(self.seconds) / images


def measure_preparing(photos: Sequence[bytes], seconds: float) -> dict[str, Cost]:
    """Prepare photos for the published models in each of WAYS, in turn, on one core.

    CommandFailed if a photo cannot be decoded.
    """
    use_cpu_threads(1)
    sizes = {way: _prepare(photos, prepare) for way, prepare in WAYS.items()}
    subjects: dict[str, Callable[[], float]] = {
        way: partial(_time, photos, prepare) for way, prepare in WAYS.items()
    }
    took = interleaved(subjects, seconds)
    return {way: Cost(took[way], sizes[way] / len(photos)) for way in WAYS}


def _time(photos: Sequence[bytes], prepare: Callable[[bytes], dict[str, Any]]) -> float:
    began = time.process_time()
    _prepare(photos, prepare)
    return time.process_time() - began


def _prepare(photos: Sequence[bytes], prepare: Callable[[bytes], dict[str, Any]]) -> int:
    """Prepare all photos, one after the other; return the bytes that cross to the detector."""
    size = 0
    for photo in photos:
        row = prepare(photo)
        if row["status"] != OK:
            raise CommandFailed(f"a photo of the bench cannot be decoded: {row['error']}")
        size += len(row["pixels"])
    return size
