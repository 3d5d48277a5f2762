"""The attention module: from queries to sampling locations and weights, and through the op."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.ops import Implementation, ms_deform_attn


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention, with the parameters of the original's module."""

    def __init__(self, d_model: int, n_levels: int, n_heads: int, n_points: int):
        super().__init__()
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.implementation: Implementation = "auto"
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Points start on rays around the reference, one direction a head, farther by point."""
        angles = torch.arange(self.n_heads) * (2.0 * math.pi / self.n_heads)
        rays = torch.stack((angles.cos(), angles.sin()), dim=-1)  # (M, 2)
        rays = rays / rays.abs().max(-1, keepdim=True).values
        steps = torch.arange(1, self.n_points + 1)[:, None]  # (P, 1)
        bias = (rays[:, None, None] * steps).expand(-1, self.n_levels, -1, -1)  # (M, L, P, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding: Tensor | None,
    ) -> Tensor:
        """One attention over all levels.

        Args:
            query: (B, Q, C).
            reference_points: (B, Q, L, 2) as (x, y), or (B, Q, L, 4) as (x, y, w, h); fp32, in
                units of the padded level.
            memory: (B, S, C), the flattened levels.
            spatial_shapes: (height, width) of each level.
            padding: (B, S) bool, True where `memory` is padding, or None.

        Returns:
            (B, Q, C).
        """
        batch, queries, _ = query.shape
        value = self.value_proj(memory)
        if padding is not None:  # after the projection: padding is 0, not the bias
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.view(batch, memory.shape[1], self.n_heads, -1)
        split = (batch, queries, self.n_heads, self.n_levels, self.n_points)
        offsets = self.sampling_offsets(query).view(*split, 2).float()
        weights = self.attention_weights(query).view(*split[:3], -1).float().softmax(-1).view(split)
        if reference_points.shape[-1] == 2:
            size = offsets.new_tensor([(width, height) for height, width in spatial_shapes])
            # Spelled out over heads and points: broadcasting over short inner axes is slow on CPUs.
            size = size[:, None].expand(*split[2:], 2).contiguous()  # (M, L, P, 2)
            centre = reference_points[:, :, None, :, None].expand(-1, -1, -1, -1, self.n_points, -1)
            locations = centre.contiguous() + offsets / size
        else:
            centre, extent = reference_points[:, :, None, :, None].split(2, dim=-1)
            locations = centre + offsets / self.n_points * extent * 0.5
        out = ms_deform_attn(value, spatial_shapes, None, locations, weights, self.implementation)
        return self.output_proj(out)
