"""Layers with their norms, sums and ReLUs folded in equal those without."""

import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.fused_layers import FusedConv2d, FusedLinear
from model.padding import zero_padding

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of the largest number; bf16 has 8 bits, and GPUs may multiply fp32 as TF32, of 10.
TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 2e-2}
CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "stride": 2},
]


def assert_near(found: Tensor, expected: Tensor) -> None:
    difference = (found.double().cpu() - expected).abs().max()
    assert difference <= TOLERANCES[found.dtype] * expected.abs().max()


def drawn(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Numbers that `dtype` has, of pictures with their channels last in memory; on the CPU."""
    numbers = torch.randn(shape, generator=generator).to(dtype)
    return numbers.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else numbers


def exact(module: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = copy.deepcopy(module).double()(x.double())
    return found


def with_norm(convolution: dict[str, Any], generator: torch.Generator) -> tuple[nn.Conv2d, Any]:
    conv = nn.Conv2d(16, 64, bias=False, **convolution)
    norm = nn.BatchNorm2d(64).eval()
    for statistics in (norm.running_mean, norm.bias):
        assert statistics is not None
        statistics.data.normal_(generator=generator)
    return conv, norm


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_convolutions(
    dtype: torch.dtype,
    convolution: dict[str, Any],
    relu: bool,
    with_residual: bool,
    padded: bool,
    generator: torch.Generator,
) -> None:
    conv, norm = with_norm(convolution, generator)
    x = drawn((2, 16, 18, 22), generator, dtype)
    expected = exact(nn.Sequential(conv, norm), x)
    residual = drawn(tuple(expected.shape), generator, dtype) if with_residual else None
    valid = torch.tensor([[5, 7], list(expected.shape[2:])]) if padded else None
    expected = expected if residual is None else expected + residual.double()
    expected = zero_padding(expected.relu() if relu else expected, valid)
    fused = FusedConv2d(conv.to(DEVICE), norm.to(DEVICE), dtype)
    there = [None if tensor is None else tensor.to(DEVICE) for tensor in (residual, valid)]
    found = fused(x.to(DEVICE), there[0], relu, there[1])
    assert_near(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or DEVICE == "cuda",
    reason="it takes Triton's interpreter, which is on where there is no GPU",
)
def test_where_cudnn_cannot_the_kernel_does(generator: torch.Generator) -> None:
    """It cannot on a CPU."""
    conv, norm = with_norm({"kernel_size": 1}, generator)
    x = drawn((2, 16, 18, 22), generator, torch.bfloat16)
    residual = drawn((2, 64, 18, 22), generator, torch.bfloat16)
    expected = (exact(nn.Sequential(conv, norm), x) + residual.double()).relu()
    fused = FusedConv2d(conv, norm, torch.bfloat16)
    fused.onednn, fused.cudnn, fused.triton = False, True, True
    with pytest.warns(UserWarning, match="cuDNN cannot add and clip"):
        assert_near(fused(x, residual, relu=True), expected)
    assert not fused.cudnn
    assert_near(fused(x, residual, relu=True), expected)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padded", [False, True])
def test_a_stem(dtype: torch.dtype, padded: bool, generator: torch.Generator) -> None:
    conv, norm = with_norm({"kernel_size": 7, "stride": 2, "padding": 3}, generator)
    x = drawn((2, 16, 37, 42), generator, dtype)
    valid = torch.tensor([[11, 8], [19, 21]]) if padded else None
    finished = zero_padding(exact(nn.Sequential(conv, norm), x).relu(), valid)
    fused = FusedConv2d(conv.to(DEVICE), norm.to(DEVICE), dtype)
    found = fused.relu_pool(x.to(DEVICE), None if valid is None else valid.to(DEVICE))
    assert_near(found, F.max_pool2d(finished, 3, 2, 1))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_linear_layers(dtype: torch.dtype, generator: torch.Generator) -> None:
    layers = [nn.Linear(24, width) for width in (32, 16)]
    x, residual = drawn((2, 9, 24), generator, dtype), drawn((2, 9, 48), generator, dtype)
    position = drawn((1, 9, 48), generator, dtype)
    norm = nn.LayerNorm(48)
    norm.weight.data.normal_(generator=generator)
    outputs = torch.cat([exact(layer, x) for layer in layers], dim=-1)
    normal = exact(norm, outputs + residual.double())
    fused = FusedLinear(*(layer.to(DEVICE) for layer in layers), dtype=dtype)
    norm = norm.to(DEVICE, dtype)
    x, residual, position = (tensor.to(DEVICE) for tensor in (x, residual, position))
    assert_near(fused(x), outputs)
    assert_near(fused(x, relu=True), outputs.relu())
    assert_near(fused.add_norm(x, residual.clone(), norm), normal)
    found, placed = fused.add_norm_place(x, residual.clone(), norm, position)
    assert_near(found, normal)
    assert_near(placed, normal + position.double().cpu())
