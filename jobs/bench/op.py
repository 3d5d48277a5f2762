"""`detr-batch bench op`: every implementation of the attention, beside transformers' own."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import get_args

import torch
from torch import Tensor

from jobs.bench.measure import Measurement, Wrong, interleaved, milliseconds, say_progress, timer
from model.ops import Implementation, fused_ms_deform_attn
from model.ops.sampling import sampling_locations
from model.zoo import DTYPES

LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))  # levels of an image of 800 x 1066 pixels
HEADS, CHANNELS, POINTS = 8, 32, 4
ROWS = sum(height * width for height, width in LEVELS)
CASES = {"encoder": (1, ROWS), "decoder": (4, 300)}  # numbers of images and queries
GPU_CASES = {"encoder": (8, ROWS), "decoder": (8, 300)}  # a GPU is full only with several images
PEER = "transformers"
# Shares of the output's size: what bf16 and fp16 round away in sums of 16 samples.
TOLERANCES = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 2e-3, "mixed": 2e-3, "int8": 1e-2}

Inputs = dict[str, Tensor]


def inputs(batch: int, queries: int, dtype: torch.dtype, device: str) -> Inputs:
    """Make random arguments of the fused op; offsets of a few pixels, as in trained models."""
    generator = torch.Generator().manual_seed(0)
    samples = HEADS * len(LEVELS) * POINTS

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    points = torch.rand(batch, queries, 2, generator=generator)
    if queries == ROWS:  # for an encoder, each cell looks around its own centre
        centres = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(1)
            for h, w in LEVELS
        ]
        points = torch.cat(centres).expand(batch, -1, -1)
    tensors = {
        "value": normal(batch, ROWS, HEADS, CHANNELS).to(dtype),
        "sampling_offsets": (normal(batch, queries, samples * 2) * 3).to(dtype),
        "attention_logits": normal(batch, queries, samples).to(dtype),
        "reference_points": points.contiguous(),
        "valid_ratios": torch.ones(batch, len(LEVELS), 2),
        "offset_bias": normal(samples * 2),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def cases(device: str) -> dict[str, tuple[int, int]]:
    """Return the numbers of images and queries of each case."""
    return CASES if device == "cpu" else GPU_CASES


def transformers_op(tensors: Inputs) -> Tensor:
    """Compute what transformers computes between its linear layers."""
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        MultiScaleDeformableAttention,
    )

    value, logits = tensors["value"], tensors["attention_logits"]
    split = (*logits.shape[:2], HEADS, len(LEVELS), POINTS)
    locations = sampling_locations(
        (tensors["sampling_offsets"] + tensors["offset_bias"]).view(*split, 2),
        tensors["reference_points"],
        tensors["valid_ratios"],
        LEVELS,
    )
    weights = logits.view(*split[:3], -1).softmax(-1).view(split)
    shapes = torch.tensor(LEVELS, device=value.device)
    out: Tensor = MultiScaleDeformableAttention()(
        value, shapes, LEVELS, None, locations.to(value.dtype), weights, 64
    )
    return out


def subjects(device: str) -> dict[str, Callable[[Inputs], Tensor]]:
    """Return the implementations that can run here, by name."""
    names = [name for name in get_args(Implementation) if name != "auto"]
    no_triton = device == "cpu" or find_spec("triton") is None
    absent = {"triton"} if no_triton else set()
    absent |= set() if device == "cpu" else {"fused_cpu"}
    found: dict[str, Callable[[Inputs], Tensor]] = {
        name: partial(_ours, implementation=name) for name in names if name not in absent
    }
    if find_spec("transformers") is not None:
        found[PEER] = transformers_op
    return found


def _ours(tensors: Inputs, implementation: Implementation) -> Tensor:
    return fused_ms_deform_attn(spatial_shapes=LEVELS, implementation=implementation, **tensors)


@torch.inference_mode()
def bench_op(
    device: str, precision: str, seconds: float, names: Sequence[str] = tuple(CASES)
) -> list[Measurement]:
    """Check each implementation against the reference, then time them in turn.

    Times are by the clock and include launches. Triton's kernel on GPUs is timed by the device, in
    a CUDA graph, as detectors run it. `names` are the names of the cases. Wrong, without any times,
    if one of our implementations is wrong. (transformers' own implementation is not judged.)
    """
    measurements = []
    for case in names:
        batch, queries = cases(device)[case]
        say_progress(f"checking the implementations on {case}, {queries} queries")
        tensors = inputs(batch, queries, DTYPES[precision], device)
        precise = {name: tensor.float() for name, tensor in tensors.items()}
        expected = _ours(precise, "reference")
        runs, errors = {}, {}
        for name, subject in subjects(device).items():
            found = subject(tensors).float()
            if name == PEER:
                errors[name] = error_of(found, expected)
            else:
                errors[name] = tolerated(name, found, expected, precision)
            runs[name] = timer(partial(subject, tensors), device, recorded=name == "triton")
        for name, took in interleaved(runs, seconds).items():
            spread = milliseconds(took)
            rate = 1e3 * batch / spread["p50_ms"]
            row = Measurement(
                benchmark="op",
                case=f"{case}, {queries} queries",
                subject=name,
                batch=batch,
                precision=precision,
                **spread,
                images_per_second=rate,
                peak_memory_mib=None,
                error=errors[name],
            )
            measurements.append(row)
    return measurements


def error_of(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the largest number."""
    return float((found.float() - expected).abs().max() / expected.abs().max())


def tolerated(name: str, found: Tensor, expected: Tensor, precision: str) -> float:
    """Return `error_of`; Wrong if it is more than this precision explains."""
    error = error_of(found, expected)
    if not error <= TOLERANCES[precision]:
        raise Wrong(f"{name} is wrong by {error:.2g}: nothing is timed")
    return error
