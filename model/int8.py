"""The feed-forward network of the encoder in integers of 8 bits, for GPUs.

Its two products take most of the encoder's multiplications. Scales (ops/narrow.py) are those of a
cell, or of 128 numbers of a cell, so a result depends neither on other cells nor on other images,
and no images are needed to find them. Weights have a scale for each output. (Numbers of e4m3 have
as many bits, of which four are spent on the exponent; with them boxes move too far, see README.md.)
"""

import torch
from torch import Tensor, nn

from model.ops import by_triton
from model.ops.narrow import GROUP, Narrow, multiply_reference, narrowed


class Int8FeedForward(nn.Module):
    """linear2(relu(linear1(x))), whose result has the `dtype`."""

    def __init__(self, linear1: nn.Linear, linear2: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.linear1, self.linear2 = Int8Linear(linear1), Int8Linear(linear2)
        self.triton = by_triton(linear1.weight.device)

    def forward(self, x: Narrow) -> Tensor:
        """`x` (..., C), with one scale for each row -> (..., C)."""
        first, second = self.linear1.parts(), self.linear2.parts()
        if self.triton:
            from model.ops.int8 import multiply_int8, multiply_relu_int8

            return multiply_int8(*multiply_relu_int8(*x, *first), *second, self.dtype)
        hidden = multiply_reference(x, *first, torch.float32).relu()
        return multiply_reference(narrowed(hidden, GROUP), *second, self.dtype)


class Int8Linear(nn.Module):
    """The parameters of a linear layer, with its weight in int8, rounded from fp32."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach().float()
        self.weight, scale = narrowed(weight, weight.shape[1])
        self.scale, self.bias = scale[:, 0], layer.bias.detach().float()

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weight (D, C) int8, its scales (D,) and the bias (D,), both fp32."""
        return self.weight, self.scale, self.bias
