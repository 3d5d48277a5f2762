"""What JPEGs cost that a detector decodes on its device (`label --decode gpu`)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.bench.measure import Wrong
from model.config import PUBLISHED_RESIZE
from model.jpeg import Jpeg, decode
from model.preprocess import resize_on_device
from model.resize import AS_DISPLAYED
from pipeline.stages.decode import decode_row, header_row
from pipeline.stages.tiling import MAX_PIXELS

# Root mean square that the pixels of two JPEG decoders may differ by. They differ where they
# enlarge colours; of another image, or of other colours, it is some tens.
MOST_ERROR = 6.0


@dataclass(frozen=True)
class Decoding:
    """What it costs to decode and resize photos on a device."""

    seconds: list[float]  # of all photos, one after the other, each time
    cpu_seconds: list[float]  # of the host meanwhile
    error: float  # root mean square of the differences from the pixels of CPUs


def measure_decoding(photos: Sequence[bytes], device: torch.device, seconds: float) -> Decoding:
    """Decode photos on a device and resize them for the published models, for some seconds.

    Wrong if pixels are far from those of CPUs, or others when photos come in another order.
    """
    jpegs = [_jpeg(photo) for photo in photos]
    first = [decode(jpeg, device).cpu() for jpeg in jpegs]
    again = [decode(jpeg, device).cpu() for jpeg in reversed(jpegs)]
    if not all(map(torch.equal, first, reversed(again))):
        raise Wrong("a photo has other pixels when photos come in another order")
    error = _error(photos, first)
    if error > MOST_ERROR:
        raise Wrong(f"pixels differ by {error:.2g} from those of CPUs, more than {MOST_ERROR:g}")
    _prepare(jpegs, device)
    took: list[float] = []
    cpu: list[float] = []
    while sum(took) < seconds:
        began, computed = time.perf_counter(), time.process_time()
        _prepare(jpegs, device)
        took.append(time.perf_counter() - began)
        cpu.append(time.process_time() - computed)
    return Decoding(took, cpu, error)


def _prepare(jpegs: Sequence[Jpeg], device: torch.device) -> None:
    for jpeg in jpegs:
        resize_on_device(decode(jpeg, device), PUBLISHED_RESIZE.target_size(*jpeg.displayed))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _jpeg(photo: bytes) -> Jpeg:
    header = header_row(photo, PUBLISHED_RESIZE, MAX_PIXELS, None)
    assert header is not None, "photos of the bench are plain JPEGs"
    content = torch.frombuffer(bytearray(photo), dtype=torch.uint8)
    return Jpeg(content, (header["height"], header["width"]), header["orientation"])


def _error(photos: Sequence[bytes], decoded: Sequence[Tensor]) -> float:
    """Root mean square of the differences from the pixels that CPUs decode."""
    total, count = 0.0, 0
    for photo, pixels in zip(photos, decoded, strict=True):
        expected = np.frombuffer(decode_row(photo, AS_DISPLAYED, MAX_PIXELS)["pixels"], np.uint8)
        difference = pixels.numpy().reshape(-1) - expected.astype(np.float64)
        total, count = total + float(np.square(difference).sum()), count + len(expected)
    return float((total / count) ** 0.5)
