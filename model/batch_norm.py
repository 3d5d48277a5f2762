"""The batch norm of the published trunk, whose statistics are fixed.

torchvision has one too, whose import takes longer than all of this package.
"""

from typing import Any

import torch
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """(x - running_mean) / sqrt(running_var + eps) * weight + bias, by channel of (B, C, H, W).

    All four (C,) are buffers: they are not trained.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        for name, make in _BUFFERS.items():
            self.register_buffer(name, make(channels))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **options: Any
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # of norms that were trained
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


_BUFFERS = {
    "weight": torch.ones,
    "bias": torch.zeros,
    "running_mean": torch.zeros,
    "running_var": torch.ones,
}
