"""Operations that torch has and does not document: oneDNN's on CPUs, and one of cuBLAS' on GPUs.

They compute a product and what follows it in one pass over memory. Nothing else of the product uses
private parts of torch, so an upgrade of torch has this file to check: tests/model/ops/
test_torch_internals.py compares each with documented operations, and its signature with that which
is expected here. pyproject.toml bounds torch by what was tested.
"""

import platform
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# Padding, stride, dilation and groups of a convolution.
Geometry: TypeAlias = tuple[Sequence[int], Sequence[int], Sequence[int], int]


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in this dtype on this device."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _onednn_takes_bf16())


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions that multiply bf16, by AVX512-BF16, AMX or Arm's."""
    if not (torch.backends.mkldnn.is_available() and _onednn_takes_bf16()):
        return False
    # Which says yes to any AVX-512, where oneDNN emulates bf16, slower than fp32.
    x86 = platform.machine() in ("x86_64", "AMD64")
    return not x86 or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _onednn_takes_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    """A convolution by oneDNN, with a ReLU if wanted: `x` (B, C, H, W) -> (B, D, H', W')."""
    unary = "relu" if relu else "none"
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, unary, [], None)


def convolve_add_(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    relu: bool,
) -> Tensor:
    """The same plus `residual` (B, D, H', W'), which is overwritten."""
    unary = "relu" if relu else None
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        residual, x, weight, bias, *geometry, "add", 1, unary, [], None
    )


def pack_weight(weight: Tensor) -> Tensor:
    """A linear layer's weight (D, C) in the order that oneDNN reads fastest."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def linear(x: Tensor, packed: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """A linear layer by oneDNN, with a ReLU if wanted: `x` (..., C) -> (..., D)."""
    unary = "relu" if relu else "none"
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, unary, [], None)


def linear_add(x: Tensor, residual: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    """A linear layer by oneDNN plus `residual` (..., D)."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")


def linear_relu_on_gpu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer and a ReLU by cuBLAS: `x` (..., C), `weight` (D, C) -> (..., D)."""
    rows = x.reshape(-1, x.shape[-1])
    return torch._addmm_activation(bias, rows, weight.t()).view(*x.shape[:-1], -1)
