"""Time the ways to compute the convolutions of ResNet-50's trunk, after a check of each way."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.bench.gpu.context import Context, Wrong
from jobs.bench.gpu.journal import CHOICE
from jobs.bench.measure import interleaved, timer
from jobs.bench.op import error_of
from model.fused_convolution import FusedConv2d
from model.ops.ways import BIAS, BLOCKS, CUDNN, POINTWISE, PRODUCT, RESIDUAL, STEM, WAYS
from model.padding import halve, zero_padding
from model.preprocess import normalize
from model.stem import FusedStem

SECONDS = 2.0  # for each choice
BATCH = 8
DTYPE = torch.bfloat16
WRONG_FROM = 2e-2  # share of the largest number, in 16 bits
VALID = 0.97  # share of each side that is no padding, in every second image

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Convolution:
    """Convolutions of one form: how many the trunk has, and the form with its input's size."""

    count: int
    channels: int
    out: int
    rows: int
    columns: int
    stride: int = 1


# At 800 x 1066: the last, second and first convolutions of the blocks.
CONVOLUTIONS = {
    RESIDUAL: (
        Convolution(3, 64, 256, 200, 267),
        Convolution(4, 128, 512, 100, 134),
        Convolution(6, 256, 1024, 50, 67),
        Convolution(3, 512, 2048, 25, 34),
    ),
    BIAS: (
        Convolution(3, 64, 64, 200, 267),
        Convolution(1, 128, 128, 200, 267, stride=2),
        Convolution(3, 128, 128, 100, 134),
        Convolution(1, 256, 256, 100, 134, stride=2),
        Convolution(5, 256, 256, 50, 67),
        Convolution(1, 512, 512, 50, 67, stride=2),
        Convolution(2, 512, 512, 25, 34),
    ),
    POINTWISE: (
        Convolution(1, 64, 64, 200, 267),
        Convolution(2, 256, 64, 200, 267),
        Convolution(1, 256, 128, 200, 267),
        Convolution(3, 512, 128, 100, 134),
        Convolution(1, 512, 256, 100, 134),
        Convolution(5, 1024, 256, 50, 67),
        Convolution(1, 1024, 512, 50, 67),
        Convolution(2, 2048, 512, 25, 34),
    ),
}
IMAGE = (800, 1066)  # of the stem
# The attribute of FusedConv2d that is true for one of the two ways, and that way.
SWITCHES = {
    RESIDUAL: ("residual_by_cudnn", CUDNN),
    BIAS: ("bias_by_cudnn", CUDNN),
    POINTWISE: ("by_product", PRODUCT),
}
TRUNK = (*SWITCHES, STEM)  # what is chosen here


def choose(context: Context, what: str, capability: str) -> None:
    """Choose the way with the least time over all such convolutions of the trunk."""
    if what == STEM:
        choose_from(context, what, capability, [(1, stem_ways(context.device, IMAGE))])
    else:
        ways = ((one.count, ways_of(what, one, context.device)) for one in CONVOLUTIONS[what])
        choose_from(context, what, capability, ways)


@torch.inference_mode()
def choose_from(
    context: Context,
    what: str,
    capability: str,
    cases: Iterable[tuple[int, dict[str, Run]]],
) -> None:
    """Time all ways of each case, which counts so many times, and write the choice.

    A way that is missing in a case is not chosen.
    """
    seconds = dict.fromkeys(WAYS[what], 0.0)
    for count, runs in cases:
        timers = {way: timer(run, context.device, recorded=True) for way, run in runs.items()}
        took = interleaved(timers, SECONDS / len(CONVOLUTIONS.get(what, (STEM,))))
        seconds = {way: seconds[way] + count * median(took[way]) for way in took if way in seconds}
    chosen = min(seconds, key=seconds.__getitem__)
    fields = {"what": what, "capability": capability, "seconds": seconds}
    context.write(what, CHOICE, table="ways", chosen=chosen, **fields)


@torch.inference_mode()
def ways_of(what: str, one: Convolution, device: str) -> dict[str, Run]:
    """Return a run of each way that this GPU has. Wrong if one differs from fp32."""
    kernel = 3 if what == BIAS else 1
    conv = nn.Conv2d(one.channels, one.out, kernel, one.stride, kernel // 2, bias=False)
    norm = nn.BatchNorm2d(one.out).eval()
    nn.init.normal_(norm.bias)
    fused = FusedConv2d(conv.to(device), norm.to(device), DTYPE)
    assert fused.bias is not None
    x = _draw(one.channels, one.rows, one.columns, device)
    residual = _draw(one.out, one.rows, one.columns, device) if what == RESIDUAL else None
    valid = _draw_areas(one.rows, one.columns, device) if what == POINTWISE else None
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        weight, bias = fused.weight.float(), fused.bias.float()
        expected = F.conv2d(x.float(), weight, bias, one.stride, kernel // 2)
    expected = expected if residual is None else expected + residual.float()
    expected = zero_padding(expected.relu(), valid)
    runs: dict[str, Run] = {}
    attribute, when = SWITCHES[what]
    for way in WAYS[what]:
        layer = copy.copy(fused)
        layer.refused = set()
        setattr(layer, attribute, way == when)
        _refuse_wrong(what, way, layer(x, residual, True, valid), expected)
        if not layer.refused:  # otherwise cuDNN has no such kernel here
            runs[way] = partial(layer, x, residual, True, valid)
    return runs


@torch.inference_mode()
def stem_ways(device: str, size: tuple[int, int]) -> dict[str, Run]:
    """Return a run of each way from pixels to the pooled map. Wrong if one differs from fp32."""
    conv, norm = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64).eval()
    nn.init.normal_(norm.bias)
    conv, norm = conv.to(device), norm.to(device)
    pixels = torch.randint(0, 256, (BATCH, *size, 3), dtype=torch.uint8, device=device)
    valid = _draw_areas(*size, device)
    values = normalize(pixels, valid)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = zero_padding(norm(conv(values)).relu(), halve(valid))
    expected = F.max_pool2d(expected, 3, 2, 1)
    runs: dict[str, Run] = {}
    for way in WAYS[STEM]:
        stem = FusedStem(conv, norm, DTYPE, way == BLOCKS)
        runs[way] = partial(_run_stem, stem, pixels, valid)
        _refuse_wrong(STEM, way, runs[way](), expected)
    return runs


def _run_stem(stem: FusedStem, pixels: Tensor, valid: Tensor) -> Tensor:
    values = normalize(pixels, valid, DTYPE, stem.blocks)
    return stem.relu_pool(values, halve(valid))


def _refuse_wrong(what: str, way: str, found: Tensor, expected: Tensor) -> None:
    error = error_of(found, expected)
    if not error <= WRONG_FROM:
        raise Wrong(f"{what} by {way} is wrong by {error:.2g}: nothing is timed")


def _draw(channels: int, rows: int, columns: int, device: str) -> Tensor:
    drawn = torch.randn(BATCH, channels, rows, columns, device=device).to(DTYPE)
    return drawn.contiguous(memory_format=torch.channels_last)


def _draw_areas(rows: int, columns: int, device: str) -> Tensor:
    """Valid areas (B, 2): of the whole, and of a part of each side, in turn."""
    sides = torch.tensor([rows, columns])
    part = (sides * VALID).ceil().long()
    return torch.stack([sides, part]).repeat(BATCH // 2, 1).to(device)
