"""Multi-scale deformable attention as the formula says it: read this one, run another.

Deformable DETR (Zhu et al. 2020), section 4.1, equation 3:

    out[q, head] = sum over levels l and points p of
        attention_weights[q, head, l, p] * bilinear(value[l, head], locations[q, head, l, p])
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def bilinear(feature_map: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample `feature_map` (H, W, D) at pixel coordinates `x`, `y` (N,): (N, D).

    Pixel centres lie at integers; what is outside the map counts as zero.
    """
    height, width, _ = feature_map.shape
    left, top = x.floor().long(), y.floor().long()
    total = feature_map.new_zeros(len(x), feature_map.shape[2])
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        pixel = feature_map[row.clamp(0, height - 1), column.clamp(0, width - 1)]
        total = total + (weight * inside)[:, None] * pixel
    return total


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Shapes as in `model.ops.ms_deform_attn`. Loops in Python over batch, heads and levels."""
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    levels = value.split([height * width for height, width in spatial_shapes], dim=1)
    out = value.new_zeros(batch, queries, heads, channels)
    for b in range(batch):
        for m in range(heads):
            for level, (height, width) in enumerate(spatial_shapes):
                feature_map = levels[level][b, :, m].reshape(height, width, channels)
                location = sampling_locations[b, :, m, level]  # (Q, P, 2)
                x = (location[..., 0] * width - 0.5).flatten()
                y = (location[..., 1] * height - 0.5).flatten()
                sampled = bilinear(feature_map, x, y).view(queries, -1, channels)  # (Q, P, D)
                weight = attention_weights[b, :, m, level]  # (Q, P)
                out[b, :, m] += torch.einsum("qp,qpd->qd", weight, sampled)
    return out.flatten(2)
