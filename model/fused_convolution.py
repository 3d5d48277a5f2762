"""Convolutions for inference, with folded batch norms and with sums and ReLUs in the same pass.

On CPUs oneDNN does these operations while it writes the result. On GPUs cuDNN and cuBLAS do what
they can, and a kernel (ops/pointwise.py) does the rest. ops/ways.py says which of them is faster.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.batch_norm import FrozenBatchNorm2d
from model.ops import by_triton, capability_of, torch_internals, warn_once
from model.ops.ways import BIAS, CUDNN, POINTWISE, PRODUCT, RESIDUAL, way_of
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
    alpha: float,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """relu(conv(x) + bias + alpha * residual), which cuDNN computes in one pass.

    `residual` is (B, D, H', W') or (1, D, 1, 1). Raises RuntimeError if cuDNN has no such kernel.
    torch keeps cuDNN's plan by the shapes of `x` and `weight`, and by alpha, but not by the shape
    of `residual`. So each shape of `residual` needs an alpha of its own. (The variant of torch
    without a residual may add 0 times uninitialised memory, which is not 0 if that holds NaN or
    infinity.)
    """
    geometry = (stride, padding, dilation, groups)
    return torch.cudnn_convolution_add_relu(x, weight, residual, alpha, bias, *geometry)


@conv_add_relu.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, residual: object, alpha: float, *geometry: Any
) -> Tensor:
    padding, stride, dilation, groups = geometry
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


class FusedConv2d(nn.Module):
    """`conv` and the batch norm after it, folded in fp32 and then cast to `dtype`.

    `more_bias` (D,) fp32 is added to the bias before the cast.
    """

    bias: Tensor | None  # (D,); a layer without a bias does a convolution and nothing else

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: BatchNorm,
        dtype: torch.dtype,
        more_bias: Tensor | None = None,
    ):
        super().__init__()
        weight, bias = folded(conv, norm)
        bias = bias if more_bias is None else bias + more_bias
        assert not isinstance(conv.padding, str)
        self.geometry: torch_internals.Geometry = (
            conv.padding,
            conv.stride,
            conv.dilation,
            conv.groups,
        )
        self.bias = bias.to(dtype)
        # The weight is not reordered for oneDNN in advance. Reordering without the size of the
        # image made 1x1 convolutions of many channels three to eight times slower. Reordering with
        # the size, which differs from batch to batch, made them up to a sixth faster (one shared
        # machine, medians of nine).
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        self.onednn = torch_internals.has_onednn(weight.device, dtype)
        self.triton = by_triton(weight.device)
        self._choose_ways(dtype)
        # The bias as cuDNN's residual, twice one half. The 2 is the alpha of this shape.
        channels = len(bias)
        self.half_bias = (self.bias / 2).as_strided(
            (1, channels, 1, 1), (channels, 1, channels, channels)
        )
        self.no_bias = torch.zeros_like(self.bias)

    def _choose_ways(self, dtype: torch.dtype) -> None:
        """Choose what computes bias, sum and ReLU on this GPU. In fp32 it is always the kernel."""
        capability = capability_of(self.weight.device)
        half = self.triton and dtype != torch.float32
        cudnn = half and torch.backends.cudnn.is_available()
        self.residual_by_cudnn = cudnn and way_of(RESIDUAL, capability) == CUDNN
        self.bias_by_cudnn = cudnn and way_of(BIAS, capability) == CUDNN
        self.by_product = half and self.is_product and way_of(POINTWISE, capability) == PRODUCT
        self.refused: set[torch.Size] = set()  # shapes of x that cuDNN does not take

    @property
    def is_product(self) -> bool:
        """Whether the convolution is a product of a matrix with the channels of each cell."""
        padding, stride, _, groups = self.geometry
        one = tuple(self.weight.shape[2:]) == tuple(stride) == (1, 1)
        return one and tuple(padding) == (0, 0) and groups == 1

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
        assert self.bias is not None or (residual is None and not relu)
        if self.triton:
            return self._forward_on_gpu(x, residual, relu, valid)
        padding, stride, dilation, groups = self.geometry
        if self.onednn and residual is not None:
            y = torch_internals.convolve_add_(
                residual, x, self.weight, self.bias, self.geometry, relu
            )
        elif self.onednn:
            y = torch_internals.convolve(x, self.weight, self.bias, self.geometry, relu)
        else:
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            y = y if residual is None else y.add_(residual)
            y = y.relu_() if relu else y
        return zero_padding(y, valid)

    def relu_pool(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Max-pool (3x3, stride 2) of relu(conv(x)), which is set to 0 outside `valid`."""
        if self.triton:
            from model.ops.pointwise import finish_pool

            assert self.bias is not None
            return finish_pool(self._convolve(x), self.bias, valid)
        return F.max_pool2d(self(x, relu=True, valid=valid), 3, 2, 1)

    def _forward_on_gpu(
        self, x: Tensor, residual: Tensor | None, relu: bool, valid: Tensor | None
    ) -> Tensor:
        from model.ops.pointwise import finish_
        from model.ops.trunk import zero_padding_

        if residual is None and self.by_product:
            y = self._multiply(x, relu)
        elif self.bias is None:
            y = self._convolve(x)
        else:
            done = self._convolve_by_cudnn(x, residual) if relu else None
            if done is None:
                y = self._convolve(x)
                finish_(y, self.bias, residual, relu, valid)
                return y
            y = done
        if valid is not None:
            zero_padding_(y, valid)
        return y

    def _multiply(self, x: Tensor, relu: bool) -> Tensor:
        """The 1x1 convolution as a product, whose bias and ReLU cuBLAS does in the same pass."""
        rows, weight = x.permute(0, 2, 3, 1), self.weight.flatten(1)
        if relu:
            assert self.bias is not None
            y = torch_internals.linear_relu_on_gpu(rows, weight, self.bias)
        else:
            y = F.linear(rows, weight, self.bias)
        return y.permute(0, 3, 1, 2)

    def _convolve_by_cudnn(self, x: Tensor, residual: Tensor | None) -> Tensor | None:
        """relu(conv(x) + residual) in one pass; None where cuDNN is not the way, or refuses."""
        by_cudnn = self.bias_by_cudnn if residual is None else self.residual_by_cudnn
        if not by_cudnn or x.shape in self.refused:
            return None
        assert self.bias is not None
        added = (self.bias, residual, 1.0)
        if residual is None:
            added = (self.no_bias, self.half_bias, 2.0)
        try:
            return conv_add_relu(x, self.weight, *added, *self.geometry)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
                raise
            warn_once(f"cuDNN cannot add and clip behind a convolution here ({error}): slower")
            self.refused.add(x.shape)
            return None

    def _convolve(self, x: Tensor) -> Tensor:
        """The convolution without the bias, channels last in memory."""
        padding, stride, dilation, groups = self.geometry
        y = F.conv2d(x, self.weight, None, stride, padding, dilation, groups)
        return y.contiguous(memory_format=torch.channels_last)
