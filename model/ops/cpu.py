"""Two implementations from torch's own operators: no compiler needed, gradients included."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def ms_deform_attn_grid_sample(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """One `grid_sample` a level, as other public implementations do without their CUDA op."""
    batch, _, heads, channels = value.shape
    queries, levels, points = sampling_locations.shape[1], *sampling_locations.shape[3:5]
    grids = 2 * sampling_locations.float() - 1
    sampled = []
    for level, (height, width) in enumerate(spatial_shapes):
        start = sum(h * w for h, w in spatial_shapes[:level])
        feature_map = value[:, start : start + height * width].float()  # (B, H*W, M, D)
        feature_map = feature_map.permute(0, 2, 3, 1).reshape(-1, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B*M, Q, P, 2)
        sampled.append(F.grid_sample(feature_map, grid, align_corners=False))
    weights = attention_weights.float().transpose(1, 2).reshape(-1, 1, queries, levels * points)
    out = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)  # (B*M, D, Q)
    return out.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def ms_deform_attn_embedding_bag(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """All levels, points and corners of a (query, head) as one weighted bag of value rows.

    `embedding_bag` gathers, weighs and sums in one vectorised call: 28 times faster than
    `grid_sample` for the gather alone on an AVX-512 CPU. A corner outside its level keeps an index
    inside the table and gets weight 0. Derivation: model/ops/README.md.
    """
    batch, length, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    device = value.device
    sizes = torch.tensor(spatial_shapes, device=device, dtype=torch.int32)  # (L, 2)
    height, width = sizes[:, 0, None], sizes[:, 1, None]
    areas = sizes[:, 0] * sizes[:, 1]
    start = (areas.cumsum(0) - areas).to(torch.int32)[:, None]  # (L, 1)

    x = sampling_locations[..., 0].float() * width - 0.5  # (B, Q, M, L, P)
    y = sampling_locations[..., 1].float() * height - 0.5
    left, top = x.detach().floor(), y.detach().floor()
    right_share, bottom_share = x - left, y - top
    column, row = left.to(torch.int32), top.to(torch.int32)

    def axis(index: Tensor, share: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Both neighbours on one axis: clamped indices and weights, (..., 2)."""
        pair = torch.stack((index, index + 1), dim=-1)
        inside = (pair >= 0) & (pair < size[..., None])
        weight = torch.stack((1 - share, share), dim=-1) * inside
        return pair.clamp_min(0).minimum(size[..., None] - 1), weight

    columns, column_weights = axis(column, right_share, width)
    rows, row_weights = axis(row, bottom_share, height)
    cell = (
        rows[..., :, None] * width[..., None, None] + columns[..., None, :] + start[..., None, None]
    )
    image = torch.arange(batch, device=device, dtype=torch.int32).view(-1, 1, 1, 1, 1, 1, 1)
    head = torch.arange(heads, device=device, dtype=torch.int32).view(-1, 1, 1, 1, 1)
    index = (image * length + cell) * heads + head  # (B, Q, M, L, P, 2, 2)
    weight = row_weights[..., :, None] * column_weights[..., None, :]
    weight = weight * attention_weights.float()[..., None, None]
    bags = batch * queries * heads
    out = F.embedding_bag(
        index.view(bags, -1).to(torch.int32 if value.numel() < 2**31 else torch.int64),
        value.float().reshape(-1, channels),
        mode="sum",
        per_sample_weights=weight.view(bags, -1),
    )
    return out.view(batch, queries, heads * channels).to(value.dtype)
