"""The attention module: from queries to sampling locations and weights, and through the op."""

import math

import torch
from torch import Tensor, nn

from model.feature_levels import FeatureLevels
from model.fused_layers import FusedLinear, Linear
from model.ops import Implementation, fused_ms_deform_attn


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention, with the parameters of the original's module."""

    def __init__(self, d_model: int, n_levels: int, n_heads: int, n_points: int):
        super().__init__()
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.implementation: Implementation = "auto"
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj: Linear = nn.Linear(d_model, d_model)
        self.output_proj: Linear = nn.Linear(d_model, d_model)
        # Where prepared for inference, in place of `sampling_offsets` and `attention_weights`.
        self.offsets_and_weights: FusedLinear | None = None
        self.offset_bias: Tensor | None = None  # fp32, of `sampling_offsets`
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

    def value(self, memory: Tensor) -> Tensor:
        """`memory` (B, S, C), the flattened levels -> (B, S, M, D)."""
        return self.value_proj(memory).unflatten(-1, (self.n_heads, -1))

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        levels: FeatureLevels,
    ) -> Tensor:
        """One attention over all levels, up to `output_proj`, which the caller adds to the query.

        Args:
            query: (B, Q, C).
            reference_points: (B, Q, 2) as (x, y), or (B, Q, 4) as (x, y, w, h); fp32, relative to
                the valid area.
            value: (B, S, M, D), see `value`.
            levels: what `value` is of: shapes, and valid areas, outside of which it counts as 0.

        Returns:
            (B, Q, C).
        """
        if self.offsets_and_weights is not None:
            samples = self.n_heads * self.n_levels * self.n_points
            offsets, logits = self.offsets_and_weights(query).split([2 * samples, samples], dim=-1)
        else:
            offsets, logits = self.sampling_offsets(query), self.attention_weights(query)
        return fused_ms_deform_attn(
            value,
            levels.shapes,
            offsets,
            logits,
            reference_points,
            levels.valid_ratios,
            levels.valid_sizes,
            self.offset_bias,
            self.implementation,
        )
