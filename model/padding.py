"""Masks, and a norm that ignores padding, so that a padded image gives the same result as alone.

`valid` and `area` are (B, 2) int64: the height and width of each image at some resolution. The
rest, at the bottom and right, is padding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def valid_mask(area: Tensor, x: Tensor) -> Tensor:
    """A mask (B, H, W) bool for `x` (B, C, H, W), which is True within the `area` of each image."""
    rows = torch.arange(x.shape[2], device=x.device) < area[:, :1]
    columns = torch.arange(x.shape[3], device=x.device) < area[:, 1:]
    return rows[:, :, None] & columns[:, None]


def zero_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """`x` (B, C, H, W) with everything outside `valid` set to 0; the memory order is kept."""
    if valid is None:
        return x
    return torch.where(valid_mask(valid, x)[:, None], x, x.new_zeros(()))


def halve(valid: Tensor | None, stride: int = 2) -> Tensor | None:
    """The valid area after a convolution of stride 1 or 2. Every partly covered cell counts."""
    return valid if valid is None or stride == 1 else (valid + 1) // 2


def valid_at(valid: Tensor, size: Sequence[int], level: Sequence[int]) -> Tensor:
    """The valid area of images at a level. It is halved as often as the size of the level.

    `size` is the height and width of the padded batch, and `level` is that of the level.
    """
    while size[0] > level[0] or size[1] > level[1]:
        size, valid = [(side + 1) // 2 for side in size], (valid + 1) // 2
    return valid


def strides_of(size: tuple[int, int], levels: Sequence[tuple[int, int]]) -> list[int]:
    """The stride of each level of a batch of this `size`. `valid_at` divides by it, rounding up."""
    strides = []
    for level in levels:
        stride = 1
        while any(-(-side // stride) > extent for side, extent in zip(size, level, strict=True)):
            stride *= 2
        strides.append(stride)
    return strides


def group_norm_of_valid(x: Tensor, norm: nn.GroupNorm, area: Tensor) -> Tensor:
    """GroupNorm of `x` (B, C, H, W), with mean and variance of the valid area. Returns fp32."""
    batch, channels = x.shape[:2]
    mask = valid_mask(area, x)[:, None, None]  # (B, 1, 1, H, W)
    groups = x.float().view(batch, norm.num_groups, -1, *x.shape[2:])
    count = (area.prod(1) * groups.shape[2]).view(-1, 1, 1, 1, 1)
    mean = (groups * mask).sum((2, 3, 4), keepdim=True) / count
    centred = (groups - mean) * mask
    variance = centred.square().sum((2, 3, 4), keepdim=True) / count
    normal = (centred * (variance + norm.eps).rsqrt()).view_as(x)
    return normal * norm.weight.view(1, channels, 1, 1) + norm.bias.view(1, channels, 1, 1)
