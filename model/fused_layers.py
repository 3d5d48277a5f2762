"""Layers for inference, with folded batch norms and with sums and ReLUs in the same pass.

The passes over memory that this saves cost as much as the products themselves. On CPUs oneDNN,
which is part of torch, does these operations while it writes the result. On GPUs one kernel
(ops/pointwise.py) replaces several kernels of torch.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.batch_norm import FrozenBatchNorm2d
from model.feature_levels import SeparablePositions
from model.ops import by_triton, capability_of, undocumented, warn_once
from model.ops.ways import CUDNN, RESIDUAL, way_of
from model.padding import zero_padding

BatchNorm: TypeAlias = nn.BatchNorm2d | FrozenBatchNorm2d


def folded(conv: nn.Conv2d, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that equals both in evaluation mode, in fp32."""
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
    """relu(conv(x) + residual), which cuDNN computes in one pass in half precision.

    Raises RuntimeError if cuDNN has no such kernel. (The variant without a residual, as torch calls
    it, may add 0 times uninitialised memory, which is not 0 if the memory holds NaN or infinity.)
    """
    geometry = (stride, padding, dilation, groups)
    return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *geometry)


@conv_add_relu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: object, *geometry: Any) -> Tensor:
    padding, stride, dilation, groups = geometry
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


class FusedConv2d(nn.Module):
    """`conv` and the batch norm after it, folded in fp32 and then cast to `dtype`."""

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
        self.refused: set[torch.Size] = set()  # shapes of x that cuDNN does not take
        self.bias = bias.to(dtype)
        # The weight is not reordered for oneDNN in advance. Reordering without the size of the
        # image made 1x1 convolutions of many channels three to eight times slower. Reordering with
        # the size, which differs from batch to batch, made them up to a sixth faster (one shared
        # machine, medians of nine).
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        self.onednn = undocumented.has_onednn(weight.device, dtype)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool = False,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Convolve `x` (B, C, H, W) to (B, D, H', W'), and add `residual` of the same shape.

        `residual` may be overwritten. Everything outside the area `valid` (B, 2) becomes 0.
        """
        by_cudnn = self.cudnn and relu and valid is None and x.shape not in self.refused
        if by_cudnn and residual is not None:
            try:
                return conv_add_relu(x, self.weight, self.bias, residual, *self.geometry)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
                    raise
                warn_once(f"cuDNN cannot add and clip behind a convolution here ({error}): slower")
                self.refused.add(x.shape)
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
        """Max-pool (3x3, stride 2) of relu(conv(x)), which is set to 0 outside `valid`."""
        if self.triton:
            from model.ops.pointwise import finish_pool

            return finish_pool(self._convolved(x), self.bias, valid)
        return F.max_pool2d(self(x, relu=True, valid=valid), 3, 2, 1)

    def _convolved(self, x: Tensor) -> Tensor:
        """The convolution without the bias, channels last in memory."""
        padding, stride, dilation, groups = self.geometry
        y = F.conv2d(x, self.weight, None, stride, padding, dilation, groups)
        return y.contiguous(memory_format=torch.channels_last)


class FusedLinear(nn.Module):
    """One linear layer that replaces several with the same input. It concatenates their outputs."""

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
        if relu and self.weight.device.type == "cuda":  # cuBLAS computes both in one pass
            return undocumented.linear_relu_on_gpu(x, self.weight, self.bias)
        y = F.linear(x, self.weight, self.bias)
        return y.relu_() if relu else y

    def add_norm(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """norm(layer(x) + residual), for `x` (..., C) and `residual` (..., D)."""
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
        self,
        x: Tensor,
        residual: Tensor,
        norm: nn.LayerNorm,
        position: Tensor | SeparablePositions,
    ) -> tuple[Tensor, Tensor]:
        """y = `add_norm` of `x` (B, S, C), and y + position. A Tensor is (B or 1, S, D)."""
        if isinstance(position, SeparablePositions):
            from model.ops.pointwise import add_norm_place

            y = F.linear(x, self.weight, self.bias)
            parts = (position.table, position.entries)
            return add_norm_place(y, residual, norm.weight, norm.bias, norm.eps, *parts)
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
    """relu(norm(conv(x)) + residual), set to 0 outside `valid`. `conv` may include its norm."""
    if isinstance(conv, FusedConv2d):
        return conv(x, residual, relu=True, valid=valid)
    y = norm(conv(x))
    return zero_padding(F.relu(y if residual is None else y + residual), valid)


def conv_norm_relu_pool(
    conv: nn.Module, norm: nn.Module, x: Tensor, valid: Tensor | None
) -> Tensor:
    """Max-pool (3x3, stride 2) of `conv_norm_relu`."""
    if isinstance(conv, FusedConv2d):
        return conv.relu_pool(x, valid)
    return F.max_pool2d(conv_norm_relu(conv, norm, x, valid=valid), 3, 2, 1)


def linear_relu(layer: nn.Module, x: Tensor) -> Tensor:
    """relu(layer(x))."""
    return layer(x, relu=True) if isinstance(layer, FusedLinear) else F.relu(layer(x))


def add_linear_norm(
    layer: nn.Module, norm: nn.LayerNorm, x: Tensor, residual: Tensor, dropout: float = 0.0
) -> Tensor:
    """norm(residual + dropout(layer(x))). `dropout` is the share that training sets to 0."""
    if isinstance(layer, FusedLinear):
        return layer.add_norm(x, residual, norm)
    y: Tensor = norm(residual + F.dropout(layer(x), dropout, layer.training))
    return y


def add_linear_norm_place(
    layer: nn.Module,
    norm: nn.LayerNorm,
    x: Tensor,
    residual: Tensor,
    position: Tensor | SeparablePositions,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """y = `add_linear_norm`, and y + position."""
    if isinstance(layer, FusedLinear):
        return layer.add_norm_place(x, residual, norm, position)
    assert isinstance(position, Tensor)
    y = add_linear_norm(layer, norm, x, residual, dropout)
    return y, y + position
