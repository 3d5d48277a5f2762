"""Where levels lie and points fall: geometry that the implementations share."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def level_rows(spatial_shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Height, width, and first row in (B, S, ...) of each level."""
    starts = accumulate((height * width for height, width in spatial_shapes), initial=0)
    return [(*shape, start) for shape, start in zip(spatial_shapes, starts, strict=False)]


def padding_of(valid_sizes: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> Tensor:
    """A mask (B, S) bool, True outside the valid height and width (B, L, 2) of each level."""
    masks = []
    for (height, width), valid in zip(spatial_shapes, valid_sizes.unbind(1), strict=True):
        rows = torch.arange(height, device=valid.device) >= valid[:, :1]
        columns = torch.arange(width, device=valid.device) >= valid[:, 1:]
        masks.append((rows[:, :, None] | columns[:, None]).flatten(1))
    return torch.cat(masks, 1)


def sampling_locations(
    offsets: Tensor,
    reference_points: Tensor,
    valid_ratios: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
) -> Tensor:
    """Locations (B, Q, M, L, P, 2), where [0, 1] spans a padded level from edge to edge; fp32.

    Args:
        offsets: (B, Q, M, L, P, 2) as (x, y): in pixels of each level around a reference point, or
            in shares of half its size, divided by P, around a reference box.
        reference_points: (B, Q, 2) as (x, y) or (B, Q, 4) as (x, y, w, h), relative to the valid
            area; fp32.
        valid_ratios: (B, L, 2), valid share of each level's width and height.
        spatial_shapes: (height, width) of each level.

    Source: `MSDeformAttn` of the original implementation.
    """
    _, _, heads, _, points, _ = offsets.shape
    scale = valid_ratios.repeat(1, 1, reference_points.shape[-1] // 2)  # (B, L, 2 or 4)
    reference = (reference_points[:, :, None] * scale[:, None])[:, :, None, :, None]
    if reference.shape[-1] == 4:
        centre, extent = reference.split(2, dim=-1)
        return centre + offsets.float() / points * extent * 0.5
    size = valid_ratios.new_tensor([(width, height) for height, width in spatial_shapes])
    # Spelled out over heads and points: broadcasting over short inner axes is slow on CPUs.
    size = size[:, None].expand(heads, -1, points, 2).contiguous()
    centre = reference.expand(-1, -1, -1, -1, points, -1).contiguous()
    return centre + offsets.float() / size
