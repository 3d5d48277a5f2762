"""Triton's kernel where it sums the corners of a sample in half precision."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from model.ops import fused_ms_deform_attn
from model.ops.sampling import padding_of
from tests.model.test_ops import LEVELS, raw_inputs

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from model.ops import triton as kernels
from model.ops.triton import fused_ms_deform_attn_triton
from model.ops.ways import FP32, HALF
from tests.support.parameters import others_slow

pytestmark = pytest.mark.usefixtures("poisoned_memory", "rounded_bf16")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float16, torch.bfloat16]


def summed_in_half(arguments: dict[str, Any]) -> Tensor:
    return fused_ms_deform_attn_triton(**arguments, corners=HALF)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "reference"), others_slow([(8, 4), (8, 2), (50, 2), (50, 4)]))
@pytest.mark.parametrize("dtype", others_slow(DTYPES))
def test_errors_are_those_of_six_roundings(
    dtype: torch.dtype, reference: int, channels: int, generator: torch.Generator
) -> None:
    """The share of each corner, four sums and the output are rounded, by half a unit each."""
    arguments = raw_inputs(generator, reference, padded=True, channels=channels)
    arguments["value"] = arguments["value"].to(dtype)
    found = summed_in_half(arguments)
    assert found.dtype == dtype
    exact, size = (
        fused_ms_deform_attn(**{**arguments, "value": value}, implementation="reference")
        for value in (arguments["value"].float(), arguments["value"].float().abs())
    )
    error = (found.float() - exact).abs()
    assert (error <= 3 * torch.finfo(dtype).eps * size + 1e-4).all()
    assert error.max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("bad", others_slow([float("nan"), float("inf"), 65504.0]))
@pytest.mark.parametrize("dtype", others_slow(DTYPES))
def test_padding_and_neighbours_do_not_matter(
    dtype: torch.dtype, bad: float, generator: torch.Generator
) -> None:
    arguments = raw_inputs(generator, 2, padded=True)
    arguments["value"] = arguments["value"].to(dtype)
    expected = summed_in_half(arguments)
    value = arguments["value"].clone()
    value.masked_fill_(padding_of(arguments["valid_sizes"], LEVELS)[..., None, None], bad)
    value[0] = bad
    assert torch.equal(summed_in_half({**arguments, "value": value})[1:], expected[1:])


@pytest.mark.slow
def test_the_table_chooses_the_way_of_16_bits_alone(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    arguments = raw_inputs(generator, 2, padded=False)
    half = {**arguments, "value": arguments["value"].half()}
    in_fp32 = fused_ms_deform_attn_triton(**half, corners=FP32)
    monkeypatch.setattr(kernels, "way_of", lambda what, capability: HALF)
    found = fused_ms_deform_attn(**half, implementation="triton")
    assert torch.equal(found, summed_in_half(half)) and not torch.equal(found, in_fp32)
    precise = fused_ms_deform_attn(**arguments, implementation="triton")
    expected = fused_ms_deform_attn(**arguments, implementation="reference")
    torch.testing.assert_close(precise, expected, atol=1e-4, rtol=1e-4)
    assert precise.device.type == DEVICE
