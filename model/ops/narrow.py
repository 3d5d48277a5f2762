"""Rows of 8-bit integers, each times a scale: what they are, by operations of torch alone.

The scale of a row, or of a group of its columns, is a 127th of the largest absolute number there.
So it depends on this row alone, and nothing is clipped. A NaN or an infinity makes it NaN, which
stands for a row, or a group, of NaN.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 127
GROUP = 128  # columns of a group
SMALLEST = 1e-30  # rows of smaller numbers are rows of zeros


class Narrow(NamedTuple):
    """Rows (..., C) int8, and their scales (..., G) fp32: one, or one for each group."""

    numbers: Tensor
    scales: Tensor


def narrowed(x: Tensor, group: int) -> Narrow:
    """`x` (..., C) rounded to integers times the scale of each `group` of its columns."""
    width = x.shape[-1]
    parts = F.pad(x.float(), (0, -width % group)).unflatten(-1, (-1, group))
    largest = parts.abs().amax(-1)
    usable = (largest > SMALLEST) & largest.isfinite()
    scaled = torch.where(usable[..., None], parts * (LARGEST / largest)[..., None], 0.0)
    numbers = (scaled + torch.where(scaled < 0, -0.5, 0.5)).to(torch.int8)
    scales = torch.where(largest.isfinite(), largest / LARGEST, torch.nan)
    return Narrow(numbers.flatten(-2)[..., :width].contiguous(), scales)


def multiply_reference(
    x: Narrow, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    """x @ weight.T * scale + bias of a `dtype`: (..., C), `weight` (D, C) int8 -> (..., D).

    `scale` and `bias` (D,) are fp32. Where `x` has several scales, they are of GROUP columns each.
    """
    width = x.numbers.shape[-1]
    group = width if x.scales.shape[-1] == 1 else GROUP
    scales = x.scales.repeat_interleave(group, dim=-1)[..., :width]
    return (F.linear(x.numbers * scales, weight.float()) * scale + bias).to(dtype)
