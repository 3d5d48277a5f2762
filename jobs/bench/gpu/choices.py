"""Time every alternative in the code in turn; `--collect` writes the best into tables."""

from dataclasses import asdict

import torch

from jobs.bench.gpu.context import Context
from jobs.bench.gpu.journal import CHOICE, TIMING
from jobs.bench.gpu.trunk_choices import TRUNK, choose
from jobs.bench.launches import CASE_OF, fastest
from jobs.bench.op import bench_op
from model.ops import capability_of

SECONDS = 2.0  # for each choice
PRECISIONS = ("bf16", "fp16")


def run(context: Context) -> None:
    """Choose launches and ways on GPUs; time the implementations of the attention anywhere."""
    if context.on_gpu:
        capability = capability_of(torch.device(context.device))
        for case, name in CASE_OF.items():
            for key in context.left_to_do([f"launch, {case}"]):
                with context.case(key):
                    _choose_launch(context, key, case, name, capability)
        for key in context.left_to_do(TRUNK):
            with context.case(key):
                choose(context, key, capability)
    for precision in ("fp32",) if context.tiny else PRECISIONS:
        for key in context.left_to_do([f"implementations of the attention, {precision}"]):
            with context.case(key):
                _time_implementations(context, key, precision)


def _choose_launch(context: Context, key: str, case: str, name: str, capability: str) -> None:
    launch, medians = fastest(case, context.device, "bf16", SECONDS)
    seconds = {f"{one.block} queries, {one.warps} warps": took for one, took in medians.items()}
    fields = {"what": name, "capability": capability, "seconds": seconds}
    context.write(key, CHOICE, table="launches", chosen=asdict(launch), **fields)


def _time_implementations(context: Context, key: str, precision: str) -> None:
    names = ("decoder",) if context.tiny else ("encoder", "decoder")
    for row in bench_op(context.device, precision, 0.0 if context.tiny else SECONDS, names):
        context.write(key, TIMING, row=asdict(row))
