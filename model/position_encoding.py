"""Sine embeddings of grid positions and of proposal boxes."""

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0


def frequencies(features: int, device: torch.device | None = None) -> Tensor:
    """What an angle is divided by for each of so many sines and cosines: (F,) fp32."""
    exponent = torch.arange(features, device=device, dtype=torch.float32)
    return TEMPERATURE ** (2 * torch.div(exponent, 2, rounding_mode="floor") / features)


def _sines(angles: Tensor, features: int) -> Tensor:
    """Interleaved sine and cosine of `angles` (..., ) over `features` frequencies: (..., F)."""
    x = angles[..., None] / frequencies(features, angles.device)
    return torch.stack((x[..., 0::2].sin(), x[..., 1::2].cos()), dim=-1).flatten(-2)


def sine_position_encoding(mask: Tensor, d_model: int, at: float = 0.5) -> Tensor:
    """Embedding of each cell of a feature map, normalised over its valid area.

    `mask` (B, H, W) bool, True where valid -> (B, d_model, H, W) fp32; the first half of the
    channels encodes y, the second x. Of each cell it is the place `at`: 0.5 is its centre and 1 its
    far side. Source: `PositionEmbeddingSine`, of Deformable DETR with 0.5 and of DETR with 1.
    """
    y = mask.cumsum(1, dtype=torch.float32)
    x = mask.cumsum(2, dtype=torch.float32)
    y = (y + (at - 1)) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = (x + (at - 1)) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    half = d_model // 2
    return torch.cat((_sines(y, half), _sines(x, half)), dim=3).permute(0, 3, 1, 2)


def proposal_position_encoding(boxes: Tensor, d_model: int) -> Tensor:
    """Embedding of two-stage proposals: `boxes` (B, Q, 4) in [0, 1] -> (B, Q, 2 * d_model)."""
    return _sines(boxes * (2 * math.pi), d_model // 2).flatten(2)
