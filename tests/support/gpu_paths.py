"""The code paths of GPUs on a CPU: kernels in Triton's interpreter, cuDNN by torch's operations."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import fused_convolution, fused_layers, inference, preprocess
from model.ops import torch_internals


class Cudnn:
    """What torch computes by cuDNN, with torch's own operations: it runs where no GPU is.

    As torch does, it keeps a plan by what torch takes for the same problem.
    """

    def __init__(self) -> None:
        self.plans: dict[Any, torch.Size] = {}

    def __call__(
        self, x: Tensor, weight: Tensor, z: Tensor, alpha: float, bias: Tensor, *geometry: Any
    ) -> Tensor:
        stride, padding, dilation, groups = geometry
        key = (x.shape, weight.shape, *map(tuple, geometry[:3]), groups, alpha)
        assert self.plans.setdefault(key, z.shape[2:]) == z.shape[2:]
        y = F.conv2d(x.float(), weight.float(), None, stride, padding, dilation, groups)
        y = y + alpha * z.float() + bias.float()[:, None, None]
        return y.relu().to(x.dtype).contiguous(memory_format=torch.channels_last)


def take_paths_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let prepared models compute as on a GPU, with tensors on the CPU."""
    for module in (fused_convolution, fused_layers, inference, preprocess):
        monkeypatch.setattr(module, "by_triton", lambda device: True)
    monkeypatch.setattr(torch_internals, "has_onednn", lambda device, dtype: False)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", Cudnn())
