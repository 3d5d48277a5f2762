"""Deformable encoder and decoder. Attribute names are the published checkpoints' keys."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import attend_to_self
from model.config import DeformableDetrConfig
from model.feature_levels import FeatureLevels, SeparablePositions
from model.fused_layers import (
    FusedLinear,
    Linear,
    add_linear_norm,
    add_linear_norm_narrow,
    add_linear_norm_place,
    add_norm_place,
    linear_relu,
)
from model.int8 import Int8FeedForward
from model.ms_deform_attn import MSDeformAttn
from model.position_encoding import proposal_position_encoding


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of `x` in [0, 1], with both sides kept at least `eps` from zero."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class EncoderLayer(nn.Module):
    def __init__(self, config: DeformableDetrConfig):
        super().__init__()
        d, levels = config.d_model, config.num_feature_levels
        self.dropout = config.dropout
        self.self_attn = MSDeformAttn(d, levels, config.n_heads, config.n_points)
        self.norm1 = nn.LayerNorm(d)
        self.linear1: Linear = nn.Linear(d, config.dim_feedforward)
        self.linear2: Linear = nn.Linear(config.dim_feedforward, d)
        self.norm2 = nn.LayerNorm(d)
        self.int8: Int8FeedForward | None = None  # in place of both layers, see `prepare_in_int8`

    def forward(
        self,
        x: Tensor,
        query: Tensor,
        levels: FeatureLevels,
        position: Tensor | SeparablePositions | None,
    ) -> tuple[Tensor, Tensor]:
        """`x` and `query`, which is `x` plus its position, of this layer -> those of the next.

        Both (B, S, C). Every cell attends around its own centre. `position` is None behind the last
        layer, whose `query` nobody reads.
        """
        y = self.self_attn(query, levels.centres, self.self_attn.value(x), levels)
        if self.int8 is not None:
            x, narrow = add_linear_norm_narrow(self.self_attn.output_proj, self.norm1, y, x)
            return add_norm_place(self.norm2, self.int8(narrow), x, position)
        x = add_linear_norm(self.self_attn.output_proj, self.norm1, y, x, self.dropout)
        y = F.dropout(linear_relu(self.linear1, x), self.dropout, self.training)
        return add_linear_norm_place(self.linear2, self.norm2, y, x, position, self.dropout)


class Encoder(nn.Module):
    def __init__(self, config: DeformableDetrConfig):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, levels: FeatureLevels) -> Tensor:
        """`levels.memory` (B, S, C) -> (B, S, C)."""
        x, query = levels.memory, levels.placed
        for number, layer in enumerate(self.layers, start=1):
            position = levels.position if number < len(self.layers) else None
            x, query = layer(x, query, levels, position)
        return x


class DecoderLayer(nn.Module):
    def __init__(self, config: DeformableDetrConfig):
        super().__init__()
        d, levels = config.d_model, config.num_feature_levels
        self.dropout = config.dropout
        self.cross_attn = MSDeformAttn(d, levels, config.n_heads, config.n_points)
        self.norm1 = nn.LayerNorm(d)
        self.self_attn = nn.MultiheadAttention(d, config.n_heads, config.dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(d)
        self.linear1: Linear = nn.Linear(d, config.dim_feedforward)
        self.linear2: Linear = nn.Linear(config.dim_feedforward, d)
        self.norm3 = nn.LayerNorm(d)

    def attend_to_queries(self, x: Tensor, position: Tensor) -> Tensor:
        """Self-attention of `x` (B, Q, C) at `position` (B, Q, C) -> (B, Q, C)."""
        query = x + position
        y = self.self_attn.out_proj(attend_to_self(self.self_attn, query, x))
        return self.norm2(x + F.dropout(y, self.dropout, self.training))

    def attend_to_memory(
        self,
        x: Tensor,
        position: Tensor,
        reference_points: Tensor,
        value: Tensor,
        levels: FeatureLevels,
    ) -> Tensor:
        """Cross-attention of `x` (B, Q, C) around `reference_points` (B, Q, 2 or 4) -> (B, Q, C).

        `value` (B, S, M, D) is `cross_attn.value` of the encoder's output.
        """
        y = self.cross_attn(x + position, reference_points, value, levels)
        x = add_linear_norm(self.cross_attn.output_proj, self.norm1, y, x, self.dropout)
        y = F.dropout(linear_relu(self.linear1, x), self.dropout, self.training)
        return add_linear_norm(self.linear2, self.norm3, y, x, self.dropout)


class Decoder(nn.Module):
    """The layers alone: heads, and the refinement that needs them, are in deformable_detr.py."""

    def __init__(self, config: DeformableDetrConfig):
        super().__init__()
        self.n_heads = config.n_heads
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.value_proj_of_all: FusedLinear | None = None  # where prepared for inference

    def values(self, memory: Tensor) -> Iterator[Tensor]:
        """What each layer attends to, first to last: `memory` (B, S, C) -> (B, S, M, D)."""
        if self.value_proj_of_all is not None:
            for value in self.value_proj_of_all(memory).chunk(len(self.layers), dim=-1):
                yield value.unflatten(-1, (self.n_heads, -1))
            return
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer.cross_attn.value(memory)


def propose(levels: FeatureLevels, encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Two-stage: a box proposal for each cell, of side 0.05 * 2^level around its centre.

    `encoded` (B, S, C), the encoder's output -> it with unusable cells zeroed (B, S, C), and the
    proposals as logits of (cx, cy, w, h), +inf where the cell is padding or too near the border
    (B, S, 4). fp32. Source: `gen_encoder_output_proposals` of the original.
    """
    cells = [height * width for height, width in levels.shapes]
    sides = [
        torch.full_like(centres, 0.05 * 2.0**index)
        for index, centres in enumerate(levels.centres.split(cells, dim=1))
    ]
    boxes = torch.cat((levels.centres, torch.cat(sides, 1)), dim=-1)
    unusable = ~((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if levels.padding is not None:
        unusable = unusable | levels.padding
    logits = torch.log(boxes / (1 - boxes)).masked_fill(unusable[..., None], float("inf"))
    return encoded.masked_fill(unusable[..., None], 0.0), logits


class Transformer(nn.Module):
    """Everything that checkpoints keep under `transformer.`."""

    def __init__(self, config: DeformableDetrConfig):
        super().__init__()
        d = config.d_model
        self.d_model, self.two_stage = d, config.two_stage
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.level_embed = nn.Parameter(torch.empty(config.num_feature_levels, d))
        if config.two_stage:
            self.enc_output = nn.Linear(d, d)
            self.enc_output_norm = nn.LayerNorm(d)
            self.pos_trans = nn.Linear(2 * d, 2 * d)
            self.pos_trans_norm = nn.LayerNorm(2 * d)
        else:
            self.reference_points = nn.Linear(d, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def queries_of(self, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Two-stage: query positions and contents from proposals (B, Q, 4) in [0, 1]."""
        embedded = proposal_position_encoding(proposals, self.d_model)
        position, content = self.pos_trans_norm(self.pos_trans(embedded)).chunk(2, dim=-1)
        return position, content
