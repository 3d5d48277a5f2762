"""Time every alternative in the code in turn; `--collect` writes the best into tables."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from statistics import median

import torch
from torch import nn

from jobs.bench.gpu.context import Context, Wrong
from jobs.bench.gpu.journal import CHOICE, TIMING
from jobs.bench.launches import CASE_OF, fastest
from jobs.bench.measure import interleaved, timer
from jobs.bench.op import bench_op, error_of
from model.fused_layers import FusedConv2d
from model.ops import capability_of
from model.ops.launches import launch_name
from model.ops.ways import CORNERS, CUDNN, RESIDUAL, WAYS

SECONDS = 2.0  # for each choice
PRECISIONS = ("bf16", "fp16")
# The last convolutions of ResNet-50's blocks at 800 x 1066: number of blocks, channels in and out,
# rows and columns of the map.
BLOCKS = (
    (3, 64, 256, 200, 267),
    (4, 128, 512, 100, 134),
    (6, 256, 1024, 50, 67),
    (3, 512, 2048, 25, 34),
)
BATCH = 8
WRONG_FROM = 2e-2  # share of the largest number, in 16 bits


def run(context: Context) -> None:
    """Choose launches and ways on GPUs; time the implementations of the attention anywhere."""
    if context.on_gpu:
        capability = capability_of(torch.device(context.device))
        for case, corners in product(CASE_OF, WAYS[CORNERS]):
            for key in context.left_to_do([f"launch, {launch_name(case, corners)}"]):
                with context.case(key):
                    _choose_launch(context, key, case, corners, capability)
        for key in context.left_to_do([CORNERS]):
            with context.case(key):
                _choose_corners(context, capability)
        for key in context.left_to_do([RESIDUAL]):
            with context.case(key):
                _choose_residual(context, capability)
    for precision in ("fp32",) if context.tiny else PRECISIONS:
        for key in context.left_to_do([f"implementations of the attention, {precision}"]):
            with context.case(key):
                _time_implementations(context, key, precision)


def _choose_launch(context: Context, key: str, case: str, corners: str, capability: str) -> None:
    launch, medians = fastest(case, corners, context.device, "bf16", SECONDS)
    seconds = {f"{one.block} queries, {one.warps} warps": took for one, took in medians.items()}
    name = launch_name(CASE_OF[case], corners)
    fields = {"what": name, "capability": capability, "seconds": seconds}
    context.write(key, CHOICE, table="launches", chosen=asdict(launch), **fields)


def _choose_corners(context: Context, capability: str) -> None:
    """Choose the way with the least time in encoder and decoder, each at its best launch."""
    records = [record for record in context.journal.records() if record["kind"] == CHOICE]
    best = {
        record["what"]: min(record["seconds"].values())
        for record in records
        if record["table"] == "launches"
    }
    names = {way: [launch_name(case, way) for case in CASE_OF.values()] for way in WAYS[CORNERS]}
    # A way that is missing for the encoder or the decoder is not chosen.
    seconds = {
        way: sum(best[name] for name in cases)
        for way, cases in names.items()
        if best.keys() >= set(cases)
    }
    chosen = min(seconds, key=seconds.__getitem__)
    fields = {"what": CORNERS, "capability": capability, "seconds": seconds}
    context.write(CORNERS, CHOICE, table="ways", chosen=chosen, **fields)


@torch.inference_mode()
def _choose_residual(context: Context, capability: str) -> None:
    """Choose the way with the least time over all sixteen blocks."""
    found: dict[str, list[float]] = {way: [] for way in WAYS[RESIDUAL]}
    for blocks, channels, out, rows, columns in BLOCKS:
        subjects = _residual_subjects(context, channels, out, (rows, columns))
        took = interleaved(subjects, SECONDS / len(BLOCKS))
        for way, times in took.items():
            found[way].append(blocks * median(times))
    # A way that is missing for some block is not chosen.
    seconds = {way: sum(times) for way, times in found.items() if len(times) == len(BLOCKS)}
    chosen = min(seconds, key=seconds.__getitem__)
    fields = {"what": RESIDUAL, "capability": capability, "seconds": seconds}
    context.write(RESIDUAL, CHOICE, table="ways", chosen=chosen, **fields)


def _residual_subjects(
    context: Context, channels: int, out: int, size: tuple[int, int]
) -> dict[str, Callable[[], float]]:
    """Make timers of each way. Wrong if a way differs from fp32."""
    conv, norm = nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out).eval()
    fused = FusedConv2d(conv.to(context.device), norm.to(context.device), torch.bfloat16)
    x, residual = (
        torch.randn(BATCH, width, *size, device=context.device)
        .to(torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        for width in (channels, out)
    )
    weight = fused.weight.float()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        summed = nn.functional.conv2d(x.float(), weight, fused.bias.float()) + residual.float()
    subjects = {}
    for way in WAYS[RESIDUAL]:
        one = copy.copy(fused)
        one.cudnn = way == CUDNN
        error = error_of(one(x, residual.clone(), relu=True), summed.relu())
        if not error <= WRONG_FROM:
            raise Wrong(f"{RESIDUAL} by {way} is wrong by {error:.2g}: nothing is timed")
        if one.cudnn == (way == CUDNN):  # otherwise cuDNN has no such kernel here
            subjects[way] = timer(partial(one, x, residual, True), context.device, recorded=True)
    return subjects


def _time_implementations(context: Context, key: str, precision: str) -> None:
    names = ("decoder",) if context.tiny else ("encoder", "decoder")
    for row in bench_op(context.device, precision, 0.0 if context.tiny else SECONDS, names):
        context.write(key, TIMING, row=asdict(row))
