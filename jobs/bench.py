"""`detr-batch bench`: what the subcommands have in common, and what they print."""

import json as json_
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch

from jobs.bench_op import PEER, bench_op
from jobs.measure import RESULTS, Measurement, append, as_table
from model.zoo import compute_dtype


def op(precision: str, device: str, seconds: float, results: Path | None, json: bool) -> int:
    """Time the implementations of the attention."""
    measured = bench_op(device, compute_dtype(precision, device), seconds)
    return _say(measured, device, results, json)


def model(
    model: str,
    size: str,
    batch_size: int,
    precision: str,
    device: str,
    seconds: float,
    results: Path | None,
    json: bool,
) -> int:
    """Time a whole model. ValueError for one that transformers lacks, or without transformers."""
    if find_spec("transformers") is None or find_spec("timm") is None:
        raise ValueError("bench model compares with transformers: pip install 'detr-batch[bench]'")
    from jobs.bench_model import bench_model
    from jobs.peers import VARIANTS

    if model not in VARIANTS:
        raise ValueError(f"--model {model!r}: choose one of {', '.join(VARIANTS)}")
    sides = size.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) >= 32 for side in sides):
        raise ValueError(f"--size {size!r}: give rows x columns from 32 up, such as 800x1066")
    if batch_size < 1:
        raise ValueError("--batch-size must be at least 1")
    rows, columns = map(int, sides)
    dtype = compute_dtype(precision, device)
    kind = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    measured = bench_model(model, (rows, columns), batch_size, kind, device, seconds)
    return _say(measured, device, results, json)


def _say(measured: list[Measurement], device: str, results: Path | None, json: bool) -> int:
    append(measured, device, results or RESULTS)
    rows = {"measurements": [asdict(row) for row in measured]}
    print(json_.dumps(rows, indent=1) if json else as_table(measured, PEER))
    return 0
