"""Resizing as the models were trained: bilinear, antialiased, in uint8, as torch does it on CPUs.

A pixel of an axis is a weighted sum of neighbours: of two where the axis is enlarged, and of about
twice the scale where it is shrunk. torch weighs along the rows, rounds to uint8, and weighs along
the columns. The weights are whole numbers. They are computed here as torch computes them, so that a
GPU (ops/resample.py) writes the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BITS = 14  # of weights where an axis is enlarged, as the largest of them is 1
ONE = 1 << BITS
MOST_PIXELS = ONE - 1  # of a side: from 16,384 on, rounded weights may sum up to more than ONE
WEIGHTS_BELOW, MOST_BITS = 1 << 15, 22  # torch keeps weights within an int16

Taps = np.ndarray[Any, np.dtype[np.int32]]


def resize_pixels(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image (h, w, 3) uint8 on the host to a height and width. (H, W, 3) uint8.

    The antialiased filter covers all pixels of the image that are in one of the result.
    """
    if tuple(image.shape[:2]) == size:
        return image
    # Not `image.permute(2, 0, 1)[None]`: the stride of its batch is that of no image, and torch
    # 2.15 then takes four times as long, for it writes planes that must be interleaved again.
    interleaved = image[None].permute(0, 3, 1, 2)
    resized = F.interpolate(interleaved, size, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].contiguous()


@dataclass(frozen=True)
class Axis:
    """What the pixels of an axis are made of: neighbours from `first` on, each with its weight."""

    first: Taps  # (target,)
    weights: Taps  # (target, taps), of 2**bits; 0 for neighbours that may not exist
    bits: int

    def table(self) -> Tensor:
        """(1 + taps, target) int32 on the host: `first`, then the weights."""
        return torch.from_numpy(np.concatenate((self.first[None], self.weights.T))).contiguous()


@lru_cache(maxsize=256)
def axis(source: int, target: int) -> Axis:
    """What the `target` pixels of an axis are made of, if it has `source` pixels.

    Source: `_compute_index_ranges_int16_weights` in UpSampleKernel.cpp of torch.
    """
    scale = source / target
    support = max(scale, 1.0)
    centre = scale * (np.arange(target) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), source) - first
    neighbour = np.arange(max(2, count.max()))
    distance = np.abs(neighbour + first[:, None] - centre[:, None] + 0.5) * (1 / support)
    weights = np.maximum(1 - distance, 0) * (neighbour < count[:, None])
    weights /= weights.cumsum(1)[:, -1:]  # `sum` adds in another order, and rounds otherwise
    largest = weights.max()
    bits = 0
    while bits < MOST_BITS and int(0.5 + largest * (1 << (bits + 1))) < WEIGHTS_BELOW:
        bits += 1
    whole = (0.5 + weights * (1 << bits)).astype(np.int32)
    return Axis(first.astype(np.int32), whole, bits)


@lru_cache(maxsize=1024)
def taps(source: int, target: int) -> Taps:
    """What the `target` pixels of an axis are made of, if it has `source` pixels, not more.

    Returns (target, 2) int32: the first neighbour, and the weight of the one behind it; ONE less
    that is the weight of the first. A weight of 0 may be of a neighbour that does not exist.
    ValueError if the axis is not enlarged, or has more than MOST_PIXELS.
    """
    if not 1 <= source <= target <= MOST_PIXELS:
        raise ValueError(f"{source} to {target} pixels: enlarge to {MOST_PIXELS} pixels at most")
    found = axis(source, target)
    # Where rounding adds a third neighbour, the first and the third weigh 0.
    skipped = found.weights[:, 0] == 0
    second = np.where(skipped, 0, found.weights[:, 1])
    return np.stack((found.first + skipped, second), axis=1)


def taps_of_batch(sources: Tensor, targets: Tensor, canvas: Sequence[int]) -> Tensor:
    """The `taps` of all rows, then of all columns, of images on one canvas (H, W).

    `sources` and `targets` (B, 2) int64 are heights and widths, on the host. Returns (B, H + W, 2)
    int32 on the host, which is 0 for pixels beyond the targets.
    """
    table = torch.zeros(len(sources), sum(canvas), 2, dtype=torch.int32)
    for own, source, target in zip(table.numpy(), sources.tolist(), targets.tolist(), strict=True):
        own[: target[0]] = taps(source[0], target[0])
        own[canvas[0] : canvas[0] + target[1]] = taps(source[1], target[1])
    return table
