"""Time the ways to compute the encoder's sums and norms behind products, after a check of each."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.bench import op as bench_op
from jobs.bench.gpu.context import Context
from jobs.bench.gpu.journal import CHOICE
from jobs.bench.measure import interleaved, timer
from jobs.bench.op import tolerated
from model.feature_levels import SeparablePositions
from model.fused_layers import FusedLinear
from model.ops.launches import NORM_CANDIDATES, NORMS, Launch
from model.ops.ways import EPILOGUE, NORM, PASS
from model.zoo import DTYPES

SECONDS = 1.0  # for each product
BATCH = 8
PRECISION = "bf16"
WIDTH = bench_op.HEADS * bench_op.CHANNELS
# How many products of the encoder end in a norm, of how many inputs, and whether positions follow.
PRODUCTS = ((6, WIDTH, False), (5, 1024, True), (1, 1024, False))

Run = Callable[[], Sequence[Tensor]]


@torch.inference_mode()
def choose(context: Context, capability: str) -> None:
    """Choose the launch of the kernel, then the way, by the least time of all such products."""
    seconds: dict[Launch | None, float] = dict.fromkeys((None, *NORM_CANDIDATES), 0.0)
    for count, inputs, placed in PRODUCTS:
        runs = runs_of(inputs, placed, context.device)
        timers = {launch: timer(run, context.device, recorded=True) for launch, run in runs.items()}
        for launch, took in interleaved(timers, SECONDS).items():
            seconds[launch] += count * median(took)
    by_pass = seconds.pop(None)
    launches = {launch: took for launch, took in seconds.items() if launch is not None}
    best = min(launches, key=launches.__getitem__)
    names = {f"{one.block} rows, {one.warps} warps": took for one, took in launches.items()}
    fields: dict[str, Any] = {"capability": capability}
    chosen: Any = asdict(best)
    context.write(
        NORM, CHOICE, table="launches", what=NORMS, chosen=chosen, seconds=names, **fields
    )
    ways = {PASS: by_pass, EPILOGUE: launches[best]}
    chosen = min(ways, key=ways.__getitem__)
    context.write(NORM, CHOICE, table="ways", what=NORM, chosen=chosen, seconds=ways, **fields)


@torch.inference_mode()
def runs_of(inputs: int, placed: bool, device: str) -> dict[Launch | None, Run]:
    """Return a run of each launch, and of the pass (None). Wrong if one differs from fp32."""
    from model.ops.linear_norm import linear_add_norm
    from model.ops.pyramid import entries_on

    dtype, rows = DTYPES[PRECISION], sum(height * width for height, width in bench_op.LEVELS)
    layer, norm = _create_layer(inputs, device)
    x, residual = (
        torch.randn(BATCH, rows, width, device=device).to(dtype) for width in (inputs, WIDTH)
    )
    entries = entries_on(torch.device(device), bench_op.LEVELS)
    table = torch.randn(BATCH, int(entries.max()) + 1, WIDTH // 2, device=device)
    arguments = (x, layer.weight, layer.bias, residual, norm.weight, norm.bias)
    expected = _in_fp32(*arguments, norm.eps)
    if placed:
        expected += table[:, entries.long()].flatten(2)
    positions = SeparablePositions(table, entries) if placed else None
    kernel = partial(linear_add_norm, *arguments, norm.eps, *((table, entries) if placed else ()))
    runs: dict[Launch | None, Run] = {
        None: partial(layer.add_norm_place, x, residual, norm, positions)
    }
    for launch in NORM_CANDIDATES:
        runs[launch] = partial(kernel, block=launch.block, warps=launch.warps)
    for way, run in runs.items():
        name = f"{NORM}, {inputs} inputs, {way or PASS}"
        tolerated(name, run()[-1], expected, PRECISION)
    return runs


def _in_fp32(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
) -> Tensor:
    """Compute the norm by torch's own operations."""
    summed = F.linear(x.float(), weight.float(), bias.float()) + residual.float()
    return F.layer_norm(summed, scale.shape, scale.float(), shift.float(), eps)


def _create_layer(inputs: int, device: str) -> tuple[FusedLinear, nn.LayerNorm]:
    """Create a layer that does not take the epilogue itself, and its norm."""
    layer = FusedLinear(nn.Linear(inputs, WIDTH).to(device), dtype=DTYPES[PRECISION])
    layer.epilogue = False
    norm = nn.LayerNorm(WIDTH)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return layer, norm.to(device, DTYPES[PRECISION])
