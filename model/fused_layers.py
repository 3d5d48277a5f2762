"""Layers for inference: batch norms folded in, sums and ReLUs taken in the same pass.

The passes over memory that this saves are as dear as the products themselves. On CPUs oneDNN, which
torch brings, does them while it writes the result; on GPUs one kernel (ops/epilogue.py) does what
torch has several for.
"""

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from model.ops import lacking_for_triton

BatchNorm: TypeAlias = nn.BatchNorm2d | FrozenBatchNorm2d


def _by_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _by_triton(device: torch.device) -> bool:
    return device.type == "cuda" and not lacking_for_triton()


def folded(conv: nn.Conv2d, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that equals both in evaluation mode; fp32."""
    assert (
        norm.weight is not None and norm.running_var is not None and norm.running_mean is not None
    )
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    return (conv.weight * scale[:, None, None, None]).detach(), bias.detach()


class FusedConv2d(nn.Module):
    """`conv` and the batch norm behind it, folded in fp32 and then cast to `dtype`."""

    def __init__(self, conv: nn.Conv2d, norm: BatchNorm, dtype: torch.dtype):
        super().__init__()
        weight, bias = folded(conv, norm)
        assert not isinstance(conv.padding, str)
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.triton = _by_triton(weight.device)
        self.bias = bias if self.triton else bias.to(dtype)
        # Not reordered for oneDNN beforehand: without the size of the picture that made 1x1
        # convolutions of many channels three to eight times slower, and with it, which differs
        # from batch to batch, up to a sixth faster (one shared machine, medians of nine).
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        self.onednn = _by_onednn(weight.device, dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """`x` (B, C, H, W) -> (B, D, H', W'), plus `residual`, alike, which it overwrites."""
        padding, stride, dilation, groups = self.geometry
        unary = "relu" if relu else None
        if self.onednn and residual is not None:
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                residual, x, self.weight, self.bias, *self.geometry, "add", 1, unary, [], None
            )
        if self.onednn:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.geometry, unary or "none", [], None
            )
        if self.triton:
            from model.ops.epilogue import finish_

            y = F.conv2d(x, self.weight, None, stride, padding, dilation, groups)
            finish_(y, self.bias, residual, relu)
            return y
        y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        if residual is not None:
            y = y.add_(residual)
        return y.relu_() if relu else y


class FusedLinear(nn.Module):
    """One linear layer for several of the same input, their outputs side by side."""

    def __init__(self, *layers: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = torch.cat([layer.weight for layer in layers]).detach().to(dtype)
        self.bias = torch.cat([layer.bias for layer in layers]).detach().to(dtype)
        self.onednn = _by_onednn(self.weight.device, dtype)
        self.triton = _by_triton(self.weight.device)
        if self.onednn:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """`x` (..., C) -> (..., D)."""
        if self.onednn:
            kind = "relu" if relu else "none"
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, kind, [], None)
        if relu and self.weight.device.type == "cuda":  # cuBLAS takes both in the same pass
            rows = x.reshape(-1, x.shape[-1])
            return torch._addmm_activation(self.bias, rows, self.weight.t()).view(*x.shape[:-1], -1)
        y = F.linear(x, self.weight, self.bias)
        return y.relu_() if relu else y

    def add_norm(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """`x` (..., C) and `residual` (..., D) -> `norm` of the layer of `x` plus `residual`."""
        if self.onednn:
            return norm(
                torch.ops.mkldnn._linear_pointwise.binary(
                    x, residual, self.weight, self.bias, "add"
                )
            )
        y = F.linear(x, self.weight, self.bias)
        if self.triton:
            from model.ops.epilogue import add_norm

            return add_norm(y, residual, norm.weight, norm.bias, norm.eps)
        return norm(y.add_(residual))


Linear: TypeAlias = nn.Linear | FusedLinear


def conv_norm_relu(
    conv: nn.Module, norm: nn.Module, x: Tensor, residual: Tensor | None = None
) -> Tensor:
    """relu(norm(conv(x)) + residual), where `conv` may have its norm folded in."""
    if isinstance(conv, FusedConv2d):
        return conv(x, residual, relu=True)
    y = norm(conv(x))
    return F.relu(y if residual is None else y + residual)


def linear_relu(layer: nn.Module, x: Tensor) -> Tensor:
    """relu(layer(x))."""
    return layer(x, relu=True) if isinstance(layer, FusedLinear) else F.relu(layer(x))


def add_linear_norm(
    layer: nn.Module, norm: nn.LayerNorm, x: Tensor, residual: Tensor, dropout: float = 0.0
) -> Tensor:
    """norm(residual + dropout(layer(x))); `dropout` is the share set to 0, while training."""
    if isinstance(layer, FusedLinear):
        return layer.add_norm(x, residual, norm)
    return norm(residual + F.dropout(layer(x), dropout, layer.training))
