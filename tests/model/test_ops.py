"""Every implementation of the op, plain and fused, equals the reference, forward and backward."""

import importlib.util
import os
import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from model.ops import Implementation, fused_ms_deform_attn, ms_deform_attn
from model.ops.sampling import padding_of
from tests.support.parameters import others_slow

LEVELS = [(7, 5), (3, 4), (1, 1)]
IMAGES, QUERIES, HEADS, CHANNELS, POINTS = 2, 63, 3, 8, 4
pytestmark = pytest.mark.usefixtures("poisoned_memory")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NO_TRITON = importlib.util.find_spec("triton") is None
FAST = [
    pytest.param(
        name,
        marks=[
            pytest.mark.skipif(name == "triton" and NO_TRITON, reason="Triton is not installed"),
            pytest.mark.skipif(
                name == "fused_cpu" and DEVICE == "cuda", reason="these tests run on the GPU"
            ),
        ],
    )
    for name in get_args(Implementation)
    if name not in ("auto", "reference")
]
DIFFERENTIABLE = [case for case in FAST if case.values != ("triton",)]
FUSED = [case for case in FAST if case.values in [("triton",), ("fused_cpu",)]]


def inputs(generator: torch.Generator) -> list[Tensor]:
    """Return a value, sampling locations from -0.3 to 1.3, and attention weights."""
    rows = sum(h * w for h, w in LEVELS)
    shape = (IMAGES, QUERIES, HEADS, len(LEVELS), POINTS)
    value = torch.randn(IMAGES, rows, HEADS, CHANNELS, generator=generator)
    locations = torch.rand(*shape, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(shape, generator=generator).flatten(3).softmax(-1).view(shape)
    return [tensor.to(DEVICE) for tensor in (value, locations, weights)]


def draw_valid_sizes(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw a valid height and width for each image: (B, 2) int64."""
    sides = [torch.randint(1, side + 1, (IMAGES,), generator=generator) for side in (height, width)]
    return torch.stack(sides, dim=1)


def raw_inputs(
    generator: torch.Generator, reference: int, padded: bool, channels: int = CHANNELS
) -> dict[str, Any]:
    """Return arguments of the fused op; offsets and logits are views of one linear output."""
    samples = HEADS * len(LEVELS) * POINTS
    rows = sum(h * w for h, w in LEVELS)
    linear = torch.randn(IMAGES, QUERIES, samples * 3, generator=generator) * 2
    offsets, logits = linear.to(DEVICE).split([samples * 2, samples], dim=-1)
    ratios = torch.rand(IMAGES, len(LEVELS), 2, generator=generator) * 0.5 + 0.5
    points = torch.rand(IMAGES, QUERIES, reference, generator=generator) * 1.2 - 0.1
    value = torch.randn(IMAGES, rows, 2 * HEADS * channels, generator=generator).to(DEVICE)
    valid = torch.stack([draw_valid_sizes(height, width, generator) for height, width in LEVELS], 1)
    valid[0, 0] = 1  # one cell
    return {
        "value": value[..., : HEADS * channels].unflatten(-1, (HEADS, channels)),
        "spatial_shapes": LEVELS,
        "sampling_offsets": offsets,
        "attention_logits": logits,
        "reference_points": points.to(DEVICE),
        "valid_ratios": ratios.to(DEVICE),
        "valid_sizes": valid.to(DEVICE) if padded else None,
        "offset_bias": torch.randn(samples * 2, generator=generator).to(DEVICE),
    }


def assert_fused_equals_reference(
    arguments: dict[str, Any], implementation: Implementation
) -> None:
    found, expected = (
        fused_ms_deform_attn(**arguments, implementation=name)
        for name in (implementation, "reference")
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", FAST)
def test_equals_reference(implementation: Implementation, generator: torch.Generator) -> None:
    value, locations, weights = inputs(generator)
    found, expected = (
        ms_deform_attn(value, LEVELS, None, locations, weights, name)
        for name in (implementation, "reference")
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", DIFFERENTIABLE)
def test_gradients_equal_those_of_the_reference(
    implementation: Implementation, generator: torch.Generator
) -> None:
    tensors = inputs(generator)
    results = []
    for name in (implementation, "reference"):
        value, locations, weights = (t.clone().requires_grad_() for t in tensors)
        out = ms_deform_attn(value, LEVELS, None, locations, weights, name)
        (out * torch.arange(out.numel(), device=DEVICE).view_as(out).cos()).sum().backward()
        results.append([value.grad, locations.grad, weights.grad])
    for found, expected in zip(*results, strict=True):
        assert found is not None
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("padded", "reference"), others_slow([(True, 4), (False, 2), (False, 4), (True, 2)])
)
@pytest.mark.parametrize("implementation", FAST)
def test_fused_equals_reference(
    implementation: Implementation, reference: int, padded: bool, generator: torch.Generator
) -> None:
    assert_fused_equals_reference(raw_inputs(generator, reference, padded), implementation)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", FUSED)
@pytest.mark.parametrize("channels", others_slow([50, 16, 32]))
def test_fused_takes_any_number_of_channels(
    channels: int, implementation: Implementation, generator: torch.Generator
) -> None:
    arguments = raw_inputs(generator, 2, padded=True, channels=channels)
    assert_fused_equals_reference(arguments, implementation)


@pytest.mark.parametrize("implementation", FUSED)
@pytest.mark.parametrize("size", [1, 2, 128])
def test_fused_at_the_last_number_before_the_border(
    size: int, implementation: Implementation, generator: torch.Generator
) -> None:
    """In pixels, x + 1 rounds up to the width there; reading at it would give the next row."""
    arguments = raw_inputs(generator, 2, padded=False)
    rows, queries, samples = size * size, 3, HEADS * POINTS
    last = torch.nextafter(torch.ones(()), torch.zeros(()))
    arguments |= {
        "value": torch.randn(1, rows, HEADS, CHANNELS, generator=generator).to(DEVICE),
        "spatial_shapes": [(size, size)],
        "sampling_offsets": torch.full((1, queries, samples * 2), 0.5, device=DEVICE),
        "attention_logits": torch.zeros(1, queries, samples, device=DEVICE),
        "reference_points": last.expand(1, queries, 2).to(DEVICE),
        "valid_ratios": torch.ones(1, 1, 2, device=DEVICE),
        "offset_bias": None,
    }
    assert_fused_equals_reference(arguments, implementation)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", others_slow([torch.bfloat16, torch.float16]))
def test_half_precision_errs_by_one_rounding_as_torch_does(
    implementation: Implementation, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """The reference gets the same rounded values, so only the output's rounding may differ."""
    arguments = raw_inputs(generator, 2, padded=True)
    halves = ("value", "sampling_offsets", "attention_logits")  # as networks pass them
    arguments |= {name: arguments[name].to(dtype) for name in halves}
    precise = {**arguments, **{name: arguments[name].float() for name in halves}}
    exact = fused_ms_deform_attn(**precise, implementation="reference")
    # Half a unit in the last place. Triton's interpreter truncates to bf16, but GPUs round.
    truncates = implementation == "triton" and DEVICE == "cpu" and dtype == torch.bfloat16
    unit = torch.finfo(dtype).eps * exact.abs()
    for name, units in ((implementation, 1.0 if truncates else 0.5), ("grid_sample", 0.5)):
        found = fused_ms_deform_attn(**arguments, implementation=name)
        assert found.dtype == dtype
        excess = (found.float() - exact).abs() - units * unit
        assert excess.max() <= 1e-4  # the error that fp32 may add, as in the tests above


@pytest.mark.slow
@pytest.mark.parametrize("implementation", FUSED)
def test_points_that_are_nan_count_as_outside(
    implementation: Implementation, generator: torch.Generator
) -> None:
    arguments = raw_inputs(generator, 2, padded=False)
    far = arguments["sampling_offsets"].clone()
    far[:, ::2] = 1e30
    expected = fused_ms_deform_attn(**{**arguments, "sampling_offsets": far})
    far[:, ::2] = float("nan")
    found = fused_ms_deform_attn(
        **{**arguments, "sampling_offsets": far}, implementation=implementation
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not found[:, ::2].any()


@pytest.mark.slow
@pytest.mark.skipif(NO_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("bad", others_slow([float("nan"), float("inf")]))
def test_triton_reads_no_padding_and_no_neighbours(bad: float, generator: torch.Generator) -> None:
    arguments = raw_inputs(generator, 2, padded=True)
    expected = fused_ms_deform_attn(**arguments, implementation="triton")
    value = arguments["value"].clone()
    value.masked_fill_(padding_of(arguments["valid_sizes"], LEVELS)[..., None, None], bad)
    value[0] = bad
    found = fused_ms_deform_attn(**{**arguments, "value": value}, implementation="triton")
    assert torch.equal(found[1:], expected[1:])


@pytest.mark.slow
@pytest.mark.skipif(NO_TRITON, reason="Triton is not installed")
def test_the_triton_operator_passes_opcheck(generator: torch.Generator) -> None:
    from model.ops.triton import levels_on, msda

    arguments = raw_inputs(generator, 4, padded=True)
    names = ("value", "sampling_offsets", "attention_logits", "reference_points", "valid_ratios")
    tensors = [arguments[name].contiguous() for name in names]
    levels = levels_on(tensors[0].device, tuple(LEVELS))
    valid = arguments["valid_sizes"]
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        msda, (*tensors, levels, valid, arguments["offset_bias"], True), test_utils=checks
    )


def test_arguments_that_do_not_fit_are_refused(generator: torch.Generator) -> None:
    value, locations, weights = inputs(generator)
    with pytest.raises(ValueError, match="spatial_shapes"):
        ms_deform_attn(value, LEVELS[:2], None, locations, weights)
    with pytest.raises(ValueError, match="attention_weights"):
        ms_deform_attn(value, LEVELS, None, locations, weights[:, :5])
    with pytest.raises(ValueError, match=r"\(B, Q, M, L, P, 2\)"):
        ms_deform_attn(value, LEVELS, None, locations[:, :, :2], weights[:, :, :2])
    with pytest.raises(ValueError, match=r"value is torch\.int64"):
        ms_deform_attn(value.long(), LEVELS, None, locations, weights)
    with pytest.raises(ValueError, match="implementation='cuda'"):
        ms_deform_attn(value, LEVELS, None, locations, weights, "cuda")  # type: ignore[arg-type]
    arguments = raw_inputs(generator, 2, padded=True)
    with pytest.raises(ValueError, match=r"valid_sizes is torch\.int32"):
        fused_ms_deform_attn(**{**arguments, "valid_sizes": arguments["valid_sizes"].int()})
    for name in (
        "sampling_offsets",
        "attention_logits",
        "reference_points",
        "valid_sizes",
        "offset_bias",
    ):
        short = {**arguments, name: arguments[name][..., :-1]}
        with pytest.raises(ValueError, match=r"has the shape .*: it must be|rows"):
            fused_ms_deform_attn(**short)


@pytest.mark.parametrize("implementation", FAST)
def test_no_queries_give_an_empty_output(
    implementation: Implementation, generator: torch.Generator
) -> None:
    arguments = raw_inputs(generator, 2, padded=False)
    for name in ("sampling_offsets", "attention_logits", "reference_points"):
        arguments[name] = arguments[name][:, :0]
    out = fused_ms_deform_attn(**arguments, implementation=implementation)
    assert out.shape == (IMAGES, 0, HEADS * CHANNELS)


@pytest.mark.parametrize("name", ["reference_points", "offset_bias"])
def test_reference_points_and_offset_bias_have_gradients(
    name: str, generator: torch.Generator
) -> None:
    arguments = raw_inputs(generator, 2, padded=True)
    shift = arguments[name].requires_grad_()
    fused_ms_deform_attn(**arguments).sum().backward()
    assert shift.grad is not None and shift.grad.abs().max() > 0


@pytest.mark.skipif(NO_TRITON, reason="Triton is not installed")
def test_triton_refuses_gradients_and_dtypes_that_it_lacks(generator: torch.Generator) -> None:
    value, locations, weights = inputs(generator)
    with pytest.raises(ValueError, match="no gradient"):
        ms_deform_attn(value.requires_grad_(), LEVELS, None, locations, weights, "triton")
    with pytest.raises(ValueError, match="float64"):
        ms_deform_attn(value.detach().double(), LEVELS, None, locations, weights, "triton")


@pytest.mark.slow
@pytest.mark.skipif(NO_TRITON, reason="Triton is not installed")
def test_the_kernels_compile_for_gpus_with_hardly_a_spill() -> None:
    """They are compiled in their own process, because this one may run Triton's interpreter."""
    capabilities = ("80", "90", "100")
    command = [sys.executable, "-m", "model.ops.compiled", *capabilities]
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    lines = done.stdout.splitlines()
    # Two launches of the attention, for points and for boxes, in two ways where values are half
    # precision; six kernels around the products, and four of the pyramid; three products that end
    # in a norm, and three of int8, where the rest is half precision; one kernel of bytes.
    kernels = 2 * (2 * 2 * 2 + 10 + 3 + 3) + (2 * 2 + 10) + 1
    assert len(lines) == len(capabilities) * kernels
    print(done.stdout)
    assert all(int(line.split(": ")[1].split()[0]) > 50 for line in lines)  # instructions
    for line in lines:
        most = 128 if "with positions" in line else 0
        spilled = int(line.split()[-3])
        assert "fp32" in line or spilled <= most, line
