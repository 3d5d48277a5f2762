"""Layers for inference, with sums, norms and ReLUs in the same pass.

The passes over memory that this saves cost as much as the products themselves. On CPUs oneDNN,
which is part of torch, does these operations while it writes the result. On GPUs one kernel
(ops/pointwise.py) replaces several kernels of torch. (fused_convolution.py has convolutions.)
"""

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.feature_levels import SeparablePositions
from model.fused_convolution import FusedConv2d
from model.ops import by_triton, capability_of, torch_internals
from model.ops.launches import MANY_FROM
from model.ops.narrow import Narrow, narrowed
from model.ops.ways import EPILOGUE, NORM, way_of
from model.padding import zero_padding


class FusedLinear(nn.Module):
    """One linear layer that replaces several with the same input. It concatenates their outputs."""

    def __init__(self, *layers: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = torch.cat([layer.weight for layer in layers]).detach().to(dtype)
        self.bias = torch.cat([layer.bias for layer in layers]).detach().to(dtype)
        self.onednn = torch_internals.has_onednn(self.weight.device, dtype)
        self.triton = by_triton(self.weight.device)
        self.epilogue = self.triton and _ends_in_norm(self.weight)  # where there are many rows
        if self.onednn:
            self.weight = torch_internals.pack_weight(self.weight)

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """`x` (..., C) -> (..., D)."""
        if self.onednn:
            return torch_internals.linear(x, self.weight, self.bias, relu)
        if relu and self.weight.device.type == "cuda":  # cuBLAS computes both in one pass
            return torch_internals.linear_relu_on_gpu(x, self.weight, self.bias)
        y = F.linear(x, self.weight, self.bias)
        return y.relu_() if relu else y

    def add_norm(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """norm(layer(x) + residual), for `x` (..., C) and `residual` (..., D)."""
        if self._takes_epilogue(x):
            from model.ops.linear_norm import linear_add_norm

            return linear_add_norm(x, *self._up_to(residual, norm))[0]
        if self.triton:
            from model.ops.pointwise import add_norm

            y = F.linear(x, self.weight, self.bias)
            return add_norm(y, residual, norm.weight, norm.bias, norm.eps)
        if self.onednn:
            y = torch_internals.linear_add(x, residual, self.weight, self.bias)
        else:
            y = F.linear(x, self.weight, self.bias).add_(residual)
        return norm(y)

    def add_norm_place(
        self,
        x: Tensor,
        residual: Tensor,
        norm: nn.LayerNorm,
        position: Tensor | SeparablePositions | None,
    ) -> tuple[Tensor, Tensor]:
        """y = `add_norm` of `x` (B, S, C), and y + position. A Tensor is (B or 1, S, D)."""
        if isinstance(position, SeparablePositions):
            if self._takes_epilogue(x):
                from model.ops.linear_norm import linear_add_norm

                parts = (position.table, position.entries)
                y, placed = linear_add_norm(x, *self._up_to(residual, norm), *parts)
                return y, placed
            y = F.linear(x, self.weight, self.bias)
            return add_norm_place(norm, y, residual, position)
        y = self.add_norm(x, residual, norm)
        return y, _placed(y, position)

    def _takes_epilogue(self, x: Tensor) -> bool:
        return self.epilogue and x.numel() // x.shape[-1] >= MANY_FROM

    def _up_to(self, residual: Tensor, norm: nn.LayerNorm) -> tuple[Any, ...]:
        """The arguments of `linear_add_norm` behind `x`."""
        return self.weight, self.bias, residual, norm.weight, norm.bias, norm.eps


def _placed(y: Tensor, position: Tensor | None) -> Tensor:
    return y if position is None else y + position


def _ends_in_norm(weight: Tensor) -> bool:
    """Whether this GPU computes products with this weight, their sum and their norm at once."""
    from model.ops.linear_norm import ends_in_norm

    way = way_of(NORM, capability_of(weight.device))
    return way == EPILOGUE and ends_in_norm(weight)


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
    position: Tensor | SeparablePositions | None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """y = `add_linear_norm`, and y + position; y twice where the position is None."""
    if isinstance(layer, FusedLinear):
        return layer.add_norm_place(x, residual, norm, position)
    assert not isinstance(position, SeparablePositions)
    y = add_linear_norm(layer, norm, x, residual, dropout)
    return y, _placed(y, position)


def add_norm_place(
    norm: nn.LayerNorm, x: Tensor, residual: Tensor, position: Tensor | SeparablePositions | None
) -> tuple[Tensor, Tensor]:
    """y = norm(x + residual), and y + position, as `add_linear_norm_place`, in inference."""
    if isinstance(position, SeparablePositions):
        from model.ops import pointwise

        parts = (position.table, position.entries)
        return pointwise.add_norm_place(x, residual, norm.weight, norm.bias, norm.eps, *parts)
    y: Tensor = norm(x + residual)
    return y, _placed(y, position)


def add_linear_norm_narrow(
    layer: nn.Module, norm: nn.LayerNorm, x: Tensor, residual: Tensor
) -> tuple[Tensor, Narrow]:
    """y = `add_linear_norm` of a prepared detector, and y in int8 with a scale for each row."""
    assert isinstance(layer, FusedLinear)
    if layer.triton:
        from model.ops.pointwise import add_norm_narrow

        product = F.linear(x, layer.weight, layer.bias)
        y, *narrow = add_norm_narrow(product, residual, norm.weight, norm.bias, norm.eps)
        return y, Narrow(*narrow)
    y = layer.add_norm(x, residual, norm)
    return y, narrowed(y, y.shape[-1])
