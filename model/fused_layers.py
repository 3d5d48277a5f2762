"""Layers for inference: batch norms folded in, sums and ReLUs taken in the same pass.

The passes over memory that this saves are as dear as the products themselves. On CPUs oneDNN, which
torch brings, does them while it writes the result; on GPUs one kernel (ops/pointwise.py) does what
torch has several for.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.batch_norm import FrozenBatchNorm2d
from model.ops import by_triton, capability_of, undocumented, warn_once
from model.ops.ways import CUDNN, RESIDUAL, way_of
from model.padding import zero_padding

BatchNorm: TypeAlias = nn.BatchNorm2d | FrozenBatchNorm2d


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


@torch.library.custom_op("detr_batch::conv_add_relu", mutates_args=())
def conv_add_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """relu(conv(x) + residual), which cuDNN takes in one pass in half precision.

    RuntimeError where it has no such kernel. (Its sister without a residual, as torch calls it, may
    add 0 times memory that nobody wrote, which is not 0 where that is no number.)
    """
    geometry = (stride, padding, dilation, groups)
    return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *geometry)


@conv_add_relu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: object, *geometry: Any) -> Tensor:
    padding, stride, dilation, groups = geometry
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


class FusedConv2d(nn.Module):
    """`conv` and the batch norm behind it, folded in fp32 and then cast to `dtype`."""

    def __init__(self, conv: nn.Conv2d, norm: BatchNorm, dtype: torch.dtype):
        super().__init__()
        weight, bias = folded(conv, norm)
        assert not isinstance(conv.padding, str)
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.triton = by_triton(weight.device)
        self.cudnn = (
            self.triton
            and dtype != torch.float32
            and torch.backends.cudnn.is_available()
            and way_of(RESIDUAL, capability_of(weight.device)) == CUDNN
        )
        self.bias = bias.to(dtype)
        # Not reordered for oneDNN beforehand: without the size of the picture that made 1x1
        # convolutions of many channels three to eight times slower, and with it, which differs
        # from batch to batch, up to a sixth faster (one shared machine, medians of nine).
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        self.onednn = undocumented.has_onednn(weight.device, dtype)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        valid: Tensor | None = None,
    ) -> Tensor:
        """`x` (B, C, H, W) -> (B, D, H', W'), plus `residual`, alike, which it may overwrite.

        All beyond `valid` (B, 2) is 0.
        """
        if self.cudnn and residual is not None and relu and valid is None:
            try:
                return conv_add_relu(x, self.weight, self.bias, residual, *self.geometry)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
                    raise
                warn_once(f"cuDNN cannot add and clip behind a convolution here ({error}): slower")
                self.cudnn = False
        if self.triton:
            from model.ops.pointwise import finish_

            y = self._convolved(x)
            finish_(y, self.bias, residual, relu, valid)
            return y
        padding, stride, dilation, groups = self.geometry
        if self.onednn and residual is not None:
            y = undocumented.convolve_add_(residual, x, self.weight, self.bias, self.geometry, relu)
        elif self.onednn:
            y = undocumented.convolve(x, self.weight, self.bias, self.geometry, relu)
        else:
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            y = y if residual is None else y.add_(residual)
            y = y.relu_() if relu else y
        return zero_padding(y, valid)

    def relu_pool(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """The max-pool, 3x3 of stride 2, of relu(conv(x)) with all beyond `valid` set to 0."""
        if self.triton:
            from model.ops.pointwise import finish_pool

            return finish_pool(self._convolved(x), self.bias, valid)
        return F.max_pool2d(self(x, relu=True, valid=valid), 3, 2, 1)

    def _convolved(self, x: Tensor) -> Tensor:
        """Without the bias, channels last in memory."""
        padding, stride, dilation, groups = self.geometry
        y = F.conv2d(x, self.weight, None, stride, padding, dilation, groups)
        return y.contiguous(memory_format=torch.channels_last)


class FusedLinear(nn.Module):
    """One linear layer for several of the same input, their outputs side by side."""

    def __init__(self, *layers: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = torch.cat([layer.weight for layer in layers]).detach().to(dtype)
        self.bias = torch.cat([layer.bias for layer in layers]).detach().to(dtype)
        self.onednn = undocumented.has_onednn(self.weight.device, dtype)
        self.triton = by_triton(self.weight.device)
        if self.onednn:
            self.weight = undocumented.pack_weight(self.weight)

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """`x` (..., C) -> (..., D)."""
        if self.onednn:
            return undocumented.linear(x, self.weight, self.bias, relu)
        if relu and self.weight.device.type == "cuda":  # cuBLAS takes both in the same pass
            return undocumented.linear_relu_on_gpu(x, self.weight, self.bias)
        y = F.linear(x, self.weight, self.bias)
        return y.relu_() if relu else y

    def add_norm(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """`x` (..., C) and `residual` (..., D) -> `norm` of the layer of `x` plus `residual`."""
        if self.triton:
            from model.ops.pointwise import add_norm

            y = F.linear(x, self.weight, self.bias)
            return add_norm(y, residual, norm.weight, norm.bias, norm.eps)
        if self.onednn:
            y = undocumented.linear_add(x, residual, self.weight, self.bias)
        else:
            y = F.linear(x, self.weight, self.bias).add_(residual)
        return norm(y)

    def add_norm_place(
        self, x: Tensor, residual: Tensor, norm: nn.LayerNorm, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`add_norm` of (B, S, C), and that plus `position`, (B, S, D) or (1, S, D)."""
        if self.triton:
            from model.ops.pointwise import add_norm_place

            y = F.linear(x, self.weight, self.bias)
            return add_norm_place(y, residual, norm.weight, norm.bias, norm.eps, position)
        y = self.add_norm(x, residual, norm)
        return y, y + position


Linear: TypeAlias = nn.Linear | FusedLinear


def conv_norm_relu(
    conv: nn.Module,
    norm: nn.Module,
    x: Tensor,
    residual: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """relu(norm(conv(x)) + residual), 0 beyond `valid`; `conv` may have its norm folded in."""
    if isinstance(conv, FusedConv2d):
        return conv(x, residual, relu=True, valid=valid)
    y = norm(conv(x))
    return zero_padding(F.relu(y if residual is None else y + residual), valid)


def conv_norm_relu_pool(
    conv: nn.Module, norm: nn.Module, x: Tensor, valid: Tensor | None
) -> Tensor:
    """The max-pool, 3x3 of stride 2, of `conv_norm_relu`."""
    if isinstance(conv, FusedConv2d):
        return conv.relu_pool(x, valid)
    return F.max_pool2d(conv_norm_relu(conv, norm, x, valid=valid), 3, 2, 1)


def linear_relu(layer: nn.Module, x: Tensor) -> Tensor:
    """relu(layer(x))."""
    return layer(x, relu=True) if isinstance(layer, FusedLinear) else F.relu(layer(x))


def add_linear_norm(
    layer: nn.Module, norm: nn.LayerNorm, x: Tensor, residual: Tensor, dropout: float = 0.0
) -> Tensor:
    """norm(residual + dropout(layer(x))); `dropout` is the share set to 0, while training."""
    if isinstance(layer, FusedLinear):
        return layer.add_norm(x, residual, norm)
    y: Tensor = norm(residual + F.dropout(layer(x), dropout, layer.training))
    return y


def add_linear_norm_place(
    layer: nn.Module,
    norm: nn.LayerNorm,
    x: Tensor,
    residual: Tensor,
    position: Tensor,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`add_linear_norm`, and that plus `position`."""
    if isinstance(layer, FusedLinear):
        return layer.add_norm_place(x, residual, norm, position)
    y = add_linear_norm(layer, norm, x, residual, dropout)
    return y, y + position
