"""The kernels that finish a matrix product on GPUs equal torch's own operations."""

import importlib.util

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from model.ops.pointwise import add_norm, add_norm_place, finish_, finish_pool, normalize_pixels
from model.padding import zero_padding

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bf16 has 8 bits. Triton's interpreter truncates to it, but GPUs round.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}


def draw_normal(
    shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw normal numbers on DEVICE; 4-d tensors have their channels last in memory."""
    drawn = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn


def draw_valid_areas(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw valid heights and widths (B, 2); the first is the size of the whole image."""
    sides = [torch.randint(1, side + 1, (shape[0],), generator=generator) for side in shape[2:]]
    drawn = torch.stack(sides, dim=1)
    drawn[0] = torch.tensor(shape[2:])
    return drawn.to(DEVICE)


def assert_near(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


SHAPES = [(2, 64, 17, 9), (3, 160, 5, 3), (2, 2048, 1, 2)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("beside", [(), ("residual",), ("valid",), ("residual", "valid")])
@pytest.mark.parametrize("shape", SHAPES)
def test_finish(
    dtype: torch.dtype,
    relu: bool,
    beside: tuple[str, ...],
    shape: tuple[int, ...],
    generator: torch.Generator,
) -> None:
    x, bias = draw_normal(shape, generator, dtype), draw_normal(shape[1:2], generator, dtype)
    residual = draw_normal(shape, generator, dtype) if "residual" in beside else None
    valid = draw_valid_areas(shape, generator) if "valid" in beside else None
    expected = x.double() + bias.double()[:, None, None]
    if residual is not None:
        expected += residual.double()
    expected = zero_padding(expected.relu() if relu else expected, valid)
    finish_(x, bias, residual, relu, valid)
    assert_near(x, expected)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("size", [(17, 9), (18, 24), (1, 2)])
def test_finish_pool(
    dtype: torch.dtype, padded: bool, size: tuple[int, int], generator: torch.Generator
) -> None:
    shape = (3, 64, *size)
    x, bias = draw_normal(shape, generator, dtype), draw_normal((64,), generator, dtype)
    valid = draw_valid_areas(shape, generator) if padded else None
    finished = zero_padding((x.double() + bias.double()[:, None, None]).relu(), valid)
    found = finish_pool(x, bias, valid)
    assert_near(found, F.max_pool2d(finished, 3, 2, 1))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_nan_stays_nan() -> None:
    x = torch.full((1, 1, 2, 2), torch.nan, device=DEVICE)
    bias = torch.zeros(1, device=DEVICE)
    assert finish_pool(x, bias, None).isnan().all()
    finish_(x, bias, None, True, None)
    assert x.isnan().all()


def test_channels_that_are_not_last_are_refused() -> None:
    with pytest.raises(ValueError, match="channels are not last"):
        finish_(torch.zeros(2, 4, 3, 3, device=DEVICE), torch.zeros(4), None, True, None)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(2, 77, 256), (1, 3, 96)])
def test_add_norm(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> None:
    x, residual = (draw_normal(shape, generator, dtype) * 3 + 1 for _ in range(2))
    weight, bias = (draw_normal(shape[-1:], generator, dtype) for _ in range(2))
    expected = F.layer_norm(
        x.double() + residual.double(), shape[-1:], weight.double(), bias.double(), 1e-5
    )
    assert_near(add_norm(x, residual, weight, bias, 1e-5), expected)
    table = draw_normal((shape[0], 19, shape[2] // 2), generator)
    entries = torch.randint(19, (shape[1], 2), generator=generator, dtype=torch.int32).to(DEVICE)
    found, placed = add_norm_place(x, residual, weight, bias, 1e-5, table, entries)
    assert_near(found, expected)
    assert_near(placed, expected + table[:, entries.long()].flatten(2).double())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padded", [False, True])
def test_normalize_pixels(dtype: torch.dtype, padded: bool, generator: torch.Generator) -> None:
    shape = (3, 3, 37, 29)
    pixels = torch.randint(0, 256, (3, 37, 29, 3), generator=generator, dtype=torch.uint8)
    pixels = pixels.to(DEVICE)
    mean, deviation = (
        torch.tensor(numbers, device=DEVICE) for numbers in ([124.0, 116, 104], [58.0, 57, 55])
    )
    valid = draw_valid_areas(shape, generator) if padded else None
    expected = ((pixels.double() - mean) / deviation).permute(0, 3, 1, 2)
    found = normalize_pixels(pixels, mean, deviation, valid, dtype)
    assert_near(found, zero_padding(expected, valid))
    assert found.is_contiguous(memory_format=torch.channels_last)
