"""Every implementation of the op equals the reference, forward and backward."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from model.ops import Implementation, ms_deform_attn

LEVELS = [(7, 5), (3, 4), (1, 1)]
FAST = [name for name in get_args(Implementation) if name not in ("auto", "reference")]


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Value, locations from -0.3 to 1.3, and weights; 63 queries, 3 heads of 8, 4 points."""
    generator = torch.Generator().manual_seed(3)
    rows = sum(h * w for h, w in LEVELS)
    value = torch.randn(2, rows, 3, 8, generator=generator).to(dtype)
    locations = torch.rand(2, 63, 3, 3, 4, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(2, 63, 3, 12, generator=generator).softmax(-1).view(2, 63, 3, 3, 4)
    return [value, locations, weights]


@pytest.mark.parametrize("implementation", FAST)
def test_equals_reference(implementation: Implementation) -> None:
    results = []
    for name in (implementation, "reference"):
        tensors = [tensor.requires_grad_() for tensor in inputs()]
        value, locations, weights = tensors
        out = ms_deform_attn(value, LEVELS, None, locations, weights, name)
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
        results.append([out.detach(), *(tensor.grad for tensor in tensors)])
    for found, expected in zip(*results, strict=True):
        assert found is not None
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_its_rounding(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    value, locations, weights = inputs()
    exact = ms_deform_attn(value, LEVELS, None, locations, weights, "reference")
    found = ms_deform_attn(value.to(dtype), LEVELS, None, locations, weights, implementation)
    assert found.dtype == dtype
    rounding = torch.finfo(dtype).eps * value.abs().max()
    assert (found.float() - exact).abs().max() < 2 * rounding


def test_refuses_shapes_that_do_not_fit() -> None:
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match="spatial_shapes"):
        ms_deform_attn(value, LEVELS[:2], None, locations, weights)
    with pytest.raises(ValueError, match="attention_weights"):
        ms_deform_attn(value, LEVELS, None, locations, weights[:, :5])
    with pytest.raises(ValueError, match="implementation='cuda'"):
        ms_deform_attn(value, LEVELS, None, locations, weights, "cuda")  # type: ignore[arg-type]
