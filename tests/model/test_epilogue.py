"""What follows a product on GPUs equals torch's own operations."""

import importlib.util

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from model.ops.epilogue import add_norm, finish_

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bf16 has 8 bits; Triton's interpreter cuts it off where GPUs round.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}


def assert_near(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", [(2, 64, 17, 9), (1, 160, 5, 3), (3, 2048, 1, 2)])
def test_finish(
    dtype: torch.dtype,
    relu: bool,
    with_residual: bool,
    shape: tuple[int, ...],
    generator: torch.Generator,
) -> None:
    def normal() -> Tensor:
        drawn = torch.randn(shape, generator=generator).to(DEVICE, dtype)
        return drawn.contiguous(memory_format=torch.channels_last)

    x, residual = normal(), normal() if with_residual else None
    bias = torch.randn(shape[1], generator=generator).to(DEVICE)
    expected = x.double() + bias.double()[:, None, None]
    if residual is not None:
        expected += residual.double()
    finish_(x, bias, residual, relu)
    assert_near(x, expected.relu() if relu else expected)


def test_finish_keeps_what_is_no_number() -> None:
    x = torch.full((1, 1, 2, 2), torch.nan, device=DEVICE)
    finish_(x, torch.zeros(1, device=DEVICE), None, True)
    assert x.isnan().all()


def test_finish_refuses_other_layouts() -> None:
    with pytest.raises(ValueError, match="channels are not last"):
        finish_(torch.zeros(2, 4, 3, 3, device=DEVICE), torch.zeros(4), None, True)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(2, 77, 256), (1, 3, 96)])
def test_add_norm(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> None:
    x, residual = (
        (torch.randn(shape, generator=generator) * 3 + 1).to(DEVICE, dtype) for _ in range(2)
    )
    weight, bias = (torch.randn(shape[-1], generator=generator).to(DEVICE, dtype) for _ in range(2))
    expected = F.layer_norm(
        x.double() + residual.double(), shape[-1:], weight.double(), bias.double(), 1e-5
    )
    assert_near(add_norm(x, residual, weight, bias, 1e-5), expected)
