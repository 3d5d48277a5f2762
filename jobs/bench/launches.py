"""`detr-batch bench launches`: find the fastest launches of the Triton kernel on this GPU.

The result goes into the table that the code reads.
"""

from collections.abc import Iterable
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from jobs.bench import op as bench_op
from jobs.bench.measure import interleaved, timer
from jobs.bench.op import Inputs, inputs, tolerated
from model.ops import capability_of, fused_ms_deform_attn
from model.ops.launches import (
    CANDIDATES,
    FEW,
    MANY,
    TABLE,
    Launch,
    add_to_table,
    launch_name,
    read_table,
)
from model.ops.triton import fused_ms_deform_attn_triton
from model.ops.ways import CORNERS, HALF, WAYS
from model.zoo import DTYPES
from pipeline.storage.errors import InputError

CASE_OF = {"decoder": FEW, "encoder": MANY}


def run(tensors: Inputs, corners: str, launch: Launch) -> Tensor:
    """Run the kernel with this way of CORNERS and this launch."""
    levels = bench_op.LEVELS
    return fused_ms_deform_attn_triton(
        spatial_shapes=levels, valid_sizes=None, corners=corners, launch=launch, **tensors
    )


@torch.inference_mode()
def fastest(
    case: str,
    corners: str,
    device: str,
    precision: str,
    seconds: float,
    candidates: Iterable[Launch] = CANDIDATES,
) -> tuple[Launch, dict[Launch, float]]:
    """Return the launch with the least median time, and the median seconds of each launch.

    Wrong, without any times, if the results of one launch are wrong.
    """
    batch, queries = bench_op.cases(device)[case]
    tensors = inputs(batch, queries, DTYPES[precision], device)
    precise = {name: tensor.float() for name, tensor in tensors.items()}
    expected = fused_ms_deform_attn(
        spatial_shapes=bench_op.LEVELS, implementation="embedding_bag", **precise
    )
    subjects = {}
    for launch in candidates:
        tolerated(str(launch), run(tensors, corners, launch), expected, precision)
        subjects[launch] = timer(partial(run, tensors, corners, launch), device, recorded=True)
    took = interleaved(subjects, seconds)
    medians = {launch: float(torch.tensor(times).median()) for launch, times in took.items()}
    return min(medians, key=medians.__getitem__), medians


def bench_launches(device: str, precision: str, seconds: float, table: Path = TABLE) -> str:
    """Fill the table for this GPU, and describe it for people. InputError without a GPU."""
    capability = capability_of(torch.device(device))
    if not capability:
        raise InputError(f"launches are those of GPUs: pass --device cuda, not {device}")
    chosen, lines = {}, [f"compute capability {capability}, {precision}"]
    for case, corners in product(CASE_OF, WAYS[CORNERS]):
        if corners == HALF and precision == "fp32":
            continue
        name = launch_name(CASE_OF[case], corners)
        chosen[name], medians = fastest(case, corners, device, precision, seconds)
        lines.append(name)
        for launch in sorted(medians, key=medians.__getitem__):
            lines.append(
                f"  {launch.block:3d} queries, {launch.warps} warps {medians[launch] * 1e6:9.1f} us"
            )
    add_to_table(capability, read_table(table).get(capability, {}) | chosen, table)
    return "\n".join(lines)
