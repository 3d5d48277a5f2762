"""Products that end in a norm on GPUs equal torch's own operations, and keep an image's bits."""

import importlib.util

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from model import fused_layers
from model.feature_levels import SeparablePositions
from model.fused_layers import FusedLinear
from model.ops.launches import NORM_CANDIDATES, Launch
from model.ops.linear_norm import ends_in_norm, linear_add_norm
from model.ops.ways import EPILOGUE
from tests.support.parameters import others_slow

pytestmark = pytest.mark.usefixtures("poisoned_memory", "rounded_bf16")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float16, torch.bfloat16]
EPS = 1e-5
# Images, rows of each, inputs and channels. No block divides the rows of the first ones.
SHAPES = [(2, 77, 64, 128), (1, 3, 256, 256), (3, 1, 32, 32), (1, 128, 1024, 256)]
Shape = tuple[int, int, int, int]


def draw_layer(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    """Draw x, weight, bias, residual, scale and shift; norms of rows whose mean is not 0."""
    batch, length, inputs, channels = shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    drawn = [normal(batch, length, inputs), normal(channels, inputs) / inputs**0.5]
    drawn += [normal(channels) + 1, normal(batch, length, channels) * 2]
    drawn += [normal(channels), normal(channels)]
    return [tensor.to(DEVICE, dtype) for tensor in drawn]


def draw_positions(shape: Shape, generator: torch.Generator) -> SeparablePositions:
    batch, length, _, channels = shape
    table = torch.randn(batch, 19, channels // 2, generator=generator)
    entries = torch.randint(19, (length, 2), generator=generator, dtype=torch.int32)
    return SeparablePositions(table.to(DEVICE), entries.to(DEVICE))


def exact(layer: list[Tensor]) -> Tensor:
    x, weight, bias, residual, scale, shift = (tensor.double() for tensor in layer)
    summed = F.linear(x, weight, bias) + residual
    return F.layer_norm(summed, scale.shape, scale, shift, EPS)


def exact_positions(positions: SeparablePositions) -> Tensor:
    return positions.table[:, positions.entries.long()].flatten(2).double()


def assert_rounded_once(found: Tensor, expected: Tensor) -> None:
    half_a_unit = torch.finfo(found.dtype).eps / 2
    torch.testing.assert_close(found.double(), expected, rtol=1.01 * half_a_unit, atol=1e-4)


@pytest.mark.parametrize("launch", others_slow(NORM_CANDIDATES), ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_only_the_output_is_rounded(
    shape: Shape, dtype: torch.dtype, launch: Launch, generator: torch.Generator
) -> None:
    layer, positions = draw_layer(shape, dtype, generator), draw_positions(shape, generator)
    cut = {"block": launch.block, "warps": launch.warps}
    (alone,) = linear_add_norm(*layer, EPS, **cut)
    assert_rounded_once(alone, exact(layer))
    found, placed = linear_add_norm(*layer, EPS, positions.table, positions.entries, **cut)
    assert_rounded_once(found, exact(layer))
    assert_rounded_once(placed, exact(layer) + exact_positions(positions))


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bits_depend_on_neither_place_nor_neighbours(
    bad: float, generator: torch.Generator
) -> None:
    """The first image moves to the third place, beside others, in a batch of another length."""
    shape = (1, 45, 64, 64)
    layer, positions = (
        draw_layer(shape, torch.bfloat16, generator),
        draw_positions(shape, generator),
    )
    parts = (positions.table, positions.entries)
    alone = linear_add_norm(*layer, EPS, *parts)
    x, weight, bias, residual, scale, shift = layer
    three = [torch.cat([torch.full_like(one, bad)] * 2 + [one]) for one in (x, residual)]
    table = positions.table.repeat(3, 1, 1)
    table[:2] = bad
    found = linear_add_norm(
        three[0], weight, bias, three[1], scale, shift, EPS, table, positions.entries
    )
    for one, among in zip(alone, found, strict=True):
        assert torch.equal(one[0], among[2])
        assert among[:2].isnan().all()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_many_rows_take_it_and_are_no_less_exact(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    shape = (2, 48, 256, 256)
    x, weight, bias, residual, scale, shift = draw_layer(shape, dtype, generator)
    positions = draw_positions(shape, generator)
    linear, norm = nn.Linear(256, 256), nn.LayerNorm(256, eps=EPS)
    linear.weight.data, linear.bias.data = weight, bias
    norm.weight.data, norm.bias.data = scale, shift
    monkeypatch.setattr(fused_layers, "by_triton", lambda device: True)
    monkeypatch.setattr(fused_layers, "MANY_FROM", 96)
    found = {}
    for way in ("pass", EPILOGUE):
        monkeypatch.setattr(fused_layers, "way_of", lambda what, capability, way=way: way)
        fused = FusedLinear(linear, dtype=dtype)
        fused.onednn = False
        fused.weight = weight
        few = fused.add_norm(x[:, 1:], residual[:, 1:], norm)
        found[way] = [fused.add_norm(x, residual, norm), few]
        found[way] += fused.add_norm_place(x, residual, norm, positions)
    expected = exact([x, weight, bias, residual, scale, shift])
    placed = expected + exact_positions(positions)
    assert torch.equal(found["pass"][1], found[EPILOGUE][1])
    for index, truth in ((0, expected), (2, expected), (3, placed)):
        before, after = ((found[way][index] - truth).square().mean() for way in found)
        assert after < before
    assert_rounded_once(found[EPILOGUE][3], placed)


@pytest.mark.parametrize(
    ("shape", "dtype", "taken"),
    [
        ((256, 1024), torch.bfloat16, True),
        ((128, 384), torch.float16, True),
        ((256, 256), torch.float32, False),
        ((192, 256), torch.bfloat16, False),
        ((512, 256), torch.bfloat16, False),
        ((256, 40), torch.bfloat16, False),
    ],
)
def test_it_takes_whole_blocks_of_16_bits(
    shape: tuple[int, int], dtype: torch.dtype, taken: bool
) -> None:
    assert ends_in_norm(torch.zeros(shape, dtype=dtype)) is taken
