"""Resizing as the models were trained: bilinear, antialiased, in uint8, as torch does it on CPUs.

Where an image is enlarged, torch weighs two neighbours along the rows, rounds to uint8, and weighs
two along the columns. The weights are whole numbers of 2**-BITS. They are computed here as torch
computes them, so that a GPU (ops/resample.py) writes the same bytes.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# torch takes as many as keep the largest weight within an int16. The largest is 1 when enlarging.
BITS = 14
ONE = 1 << BITS
MOST_PIXELS = ONE - 1  # of a side: from 16,384 on, rounded weights may sum up to more than ONE

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


@lru_cache(maxsize=1024)
def taps(source: int, target: int) -> Taps:
    """What the `target` pixels of an axis are made of, if it has `source` pixels, not more.

    Returns (target, 2) int32: the first neighbour, and the weight of the one behind it; ONE less
    that is the weight of the first. A weight of 0 may be of a neighbour that does not exist.
    ValueError if the axis is not enlarged, or has more than MOST_PIXELS.

    Source: `_compute_index_ranges_int16_weights` in UpSampleKernel.cpp of torch.
    """
    if not 1 <= source <= target <= MOST_PIXELS:
        raise ValueError(f"{source} to {target} pixels: enlarge to {MOST_PIXELS} pixels at most")
    centre = source / target * (np.arange(target) + 0.5)
    first = np.maximum((centre - 0.5).astype(np.int64), 0)
    count = np.minimum((centre + 1.5).astype(np.int64), source) - first
    neighbour = np.arange(3)
    distance = np.abs(neighbour + first[:, None] - centre[:, None] + 0.5)
    weights = np.maximum(1 - distance, 0) * (neighbour < count[:, None])
    whole = (0.5 + weights / weights.sum(1, keepdims=True) * ONE).astype(np.int32)
    # Where rounding adds a third neighbour, the first and the third weigh 0.
    skipped = whole[:, 0] == 0
    found = np.stack((first + skipped, np.where(skipped, 0, whole[:, 1])), axis=1)
    return found.astype(np.int32)


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
