"""Fused layers equal the separate layers, norms, sums and ReLUs that they are made of."""

import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.fused_convolution import FusedConv2d
from model.fused_layers import FusedLinear
from model.ops import warn_once
from model.padding import zero_padding

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative to the largest number. bf16 has 8 bits; GPUs may multiply fp32 as TF32, with 10 bits.
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


def draw_numbers(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw numbers that `dtype` can hold, on the CPU; 4-d tensors have their channels last."""
    numbers = torch.randn(shape, generator=generator).to(dtype)
    return numbers.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else numbers


def exact_output(module: nn.Module, x: Tensor) -> Tensor:
    """Run a copy of a module in fp64."""
    found: Tensor = copy.deepcopy(module).double()(x.double())
    return found


def create_conv_and_norm(
    convolution: dict[str, Any], generator: torch.Generator
) -> tuple[nn.Conv2d, Any]:
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
def test_fused_convolution_equals_conv_norm_add_and_relu(
    dtype: torch.dtype,
    convolution: dict[str, Any],
    relu: bool,
    with_residual: bool,
    padded: bool,
    generator: torch.Generator,
) -> None:
    conv, norm = create_conv_and_norm(convolution, generator)
    x = draw_numbers((2, 16, 18, 22), generator, dtype)
    expected = exact_output(nn.Sequential(conv, norm), x)
    residual = draw_numbers(tuple(expected.shape), generator, dtype) if with_residual else None
    valid = torch.tensor([[5, 7], list(expected.shape[2:])]) if padded else None
    expected = expected if residual is None else expected + residual.double()
    expected = zero_padding(expected.relu() if relu else expected, valid)
    fused = FusedConv2d(conv.to(DEVICE), norm.to(DEVICE), dtype)
    on_device = [None if tensor is None else tensor.to(DEVICE) for tensor in (residual, valid)]
    found = fused(x.to(DEVICE), on_device[0], relu, on_device[1])
    assert_near(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or DEVICE == "cuda",
    reason="this test needs Triton's interpreter, which is used only where there is no GPU",
)
def test_the_triton_kernel_replaces_cudnn_where_it_fails(generator: torch.Generator) -> None:
    """cuDNN always fails on a CPU, so the layer must fall back to the Triton kernel."""
    conv, norm = create_conv_and_norm({"kernel_size": 1}, generator)
    x = draw_numbers((2, 16, 18, 22), generator, torch.bfloat16)
    residual = draw_numbers((2, 64, 18, 22), generator, torch.bfloat16)
    expected = (exact_output(nn.Sequential(conv, norm), x) + residual.double()).relu()
    fused = FusedConv2d(conv, norm, torch.bfloat16)
    fused.onednn, fused.residual_by_cudnn, fused.triton = False, True, True
    warn_once.cache_clear()  # another test, or this one with another seed, may have warned
    with pytest.warns(UserWarning, match="cuDNN cannot add and clip"):
        assert_near(fused(x, residual, relu=True), expected)
    assert fused.refused == {x.shape}
    assert_near(fused(x, residual, relu=True), expected)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padded", [False, True])
def test_stem_equals_conv_norm_relu_and_pooling(
    dtype: torch.dtype, padded: bool, generator: torch.Generator
) -> None:
    conv, norm = create_conv_and_norm({"kernel_size": 7, "stride": 2, "padding": 3}, generator)
    x = draw_numbers((2, 16, 37, 42), generator, dtype)
    valid = torch.tensor([[11, 8], [19, 21]]) if padded else None
    finished = zero_padding(exact_output(nn.Sequential(conv, norm), x).relu(), valid)
    fused = FusedConv2d(conv.to(DEVICE), norm.to(DEVICE), dtype)
    found = fused.relu_pool(x.to(DEVICE), None if valid is None else valid.to(DEVICE))
    assert_near(found, F.max_pool2d(finished, 3, 2, 1))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_fused_linear_equals_linear_add_and_norm(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    layers = [nn.Linear(24, width) for width in (32, 16)]
    x, residual = (
        draw_numbers((2, 9, 24), generator, dtype),
        draw_numbers((2, 9, 48), generator, dtype),
    )
    position = draw_numbers((1, 9, 48), generator, dtype)
    norm = nn.LayerNorm(48)
    norm.weight.data.normal_(generator=generator)
    outputs = torch.cat([exact_output(layer, x) for layer in layers], dim=-1)
    normal = exact_output(norm, outputs + residual.double())
    fused = FusedLinear(*(layer.to(DEVICE) for layer in layers), dtype=dtype)
    norm = norm.to(DEVICE, dtype)
    x, residual, position = (tensor.to(DEVICE) for tensor in (x, residual, position))
    assert_near(fused(x), outputs)
    assert_near(fused(x, relu=True), outputs.relu())
    assert_near(fused.add_norm(x, residual.clone(), norm), normal)
    found, placed = fused.add_norm_place(x, residual.clone(), norm, position)
    assert_near(found, normal)
    assert_near(placed, normal + position.double().cpu())
