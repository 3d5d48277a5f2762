"""Time every alternative in the code in turn; `--collect` writes the best into tables."""

from dataclasses import asdict
from itertools import product

import torch

from jobs.bench.gpu import product_choices
from jobs.bench.gpu.context import Context
from jobs.bench.gpu.journal import CHOICE, TIMING
from jobs.bench.gpu.trunk_choices import TRUNK, choose
from jobs.bench.launches import CASE_OF, fastest
from jobs.bench.op import bench_op
from model.ops import capability_of
from model.ops.launches import launch_name
from model.ops.ways import CORNERS, NORM, WAYS

SECONDS = 2.0  # for each choice
PRECISIONS = ("bf16", "fp16")


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
        for key in context.left_to_do(TRUNK):
            with context.case(key):
                choose(context, key, capability)
        for key in context.left_to_do([NORM]):
            with context.case(key):
                product_choices.choose(context, capability)
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


def _time_implementations(context: Context, key: str, precision: str) -> None:
    names = ("decoder",) if context.tiny else ("encoder", "decoder")
    for row in bench_op(context.device, precision, 0.0 if context.tiny else SECONDS, names):
        context.write(key, TIMING, row=asdict(row))
