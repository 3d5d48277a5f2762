"""`detr-batch bench`: what the subcommands have in common, and what they print."""

import json as json_
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from jobs.bench_op import PEER, bench_op
from jobs.measure import RESULTS, Measurement, append, as_table
from model.zoo import compute_dtype


def op(precision: str, device: str, seconds: float, results: Path | None, json: bool) -> int:
    """Time the implementations of the attention."""
    _refuse_absent(device)
    measured = bench_op(device, compute_dtype(precision, device), seconds)
    append(measured, device, results or RESULTS)
    return _say(measured, PEER, json)


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
    _refuse_what_peers_lack(model, device)
    from jobs.bench_model import bench_model

    sides = size.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) >= 32 for side in sides):
        raise ValueError(f"--size {size!r}: give rows x columns from 32 up, such as 800x1066")
    if batch_size < 1:
        raise ValueError("--batch-size must be at least 1")
    rows, columns = map(int, sides)
    kind = _resolved(precision, device)
    measured = bench_model(model, (rows, columns), batch_size, kind, device, seconds)
    append(measured, device, results or RESULTS)
    return _say(measured, PEER, json)


def pipeline(
    model: str,
    images: int,
    precision: str,
    device: str,
    seconds: float,
    results: Path | None,
    json: bool,
) -> int:
    """Time `label` as a whole. ValueError as `model`."""
    _refuse_what_peers_lack(model, device)
    from jobs.bench_pipeline import PLAIN, bench_pipeline, stages_as_text

    if images < 1:
        raise ValueError("--images must be at least 1")
    kind = _resolved(precision, device)
    measured, report = bench_pipeline(model, images, kind, device, seconds)
    append(measured, device, results or RESULTS)
    if json:
        return _say(measured, PLAIN, json, report=report)
    _say(measured, PLAIN, json)
    print(stages_as_text(report))
    return 0


def _resolved(precision: str, device: str) -> str:
    dtype = compute_dtype(precision, device)
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def _refuse_absent(device: str) -> None:
    """ValueError for a device that this machine lacks."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device}: it cannot be used here ({reason})") from error


def _refuse_what_peers_lack(model: str, device: str) -> None:
    """ValueError for a model that transformers lacks, an absent device, or no transformers."""
    if find_spec("transformers") is None or find_spec("timm") is None:
        raise ValueError("this compares with transformers: pip install 'detr-batch[bench]'")
    from jobs.peers import VARIANTS

    if model not in VARIANTS:
        raise ValueError(f"--model {model!r}: choose one of {', '.join(VARIANTS)}")
    _refuse_absent(device)


def _say(measured: list[Measurement], baseline: str, json: bool, **other: Any) -> int:
    document = {"measurements": [asdict(row) for row in measured], **other}
    print(json_.dumps(document, indent=1) if json else as_table(measured, baseline))
    return 0
