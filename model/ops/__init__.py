"""Multi-scale deformable attention: one signature, several implementations."""

import os
import shutil
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from model.ops.cpu import ms_deform_attn_embedding_bag, ms_deform_attn_grid_sample
from model.ops.reference import ms_deform_attn_reference
from model.ops.sampling import padding_of, sampling_locations

Implementation = Literal["auto", "reference", "grid_sample", "embedding_bag", "fused_cpu", "triton"]
Shapes = Tensor | Sequence[tuple[int, int]]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Shapes,
    level_start_index: Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    implementation: Implementation = "auto",
) -> Tensor:
    """Sample `value` at `sampling_locations` and sum with `attention_weights`.

    Args:
        value: (B, S, M, D) of any floating dtype; S = sum of H * W over the levels.
        spatial_shapes: (L, 2) height and width of each level; a tensor, or pairs of Python ints,
            which spare a GPU the wait for a copy to the host.
        level_start_index: (L,) first row of each level in S. It follows from `spatial_shapes`; the
            argument keeps the signature of the original op, and None is welcome.
        sampling_locations: (B, Q, M, L, P, 2) as (x, y), where [0, 1] spans a level from edge to
            edge. Outside counts as zero. Keep these fp32: bf16 is off by up to a third of a pixel.
        attention_weights: (B, Q, M, L, P), as a rule summing to 1 over (L, P).
        implementation: "auto" is the fastest on `value`'s device: "fused_cpu" on a CPU, "triton"
            on a GPU where no gradient is wanted and Triton can run, else "embedding_bag".

    Returns:
        (B, Q, M * D) of `value`'s dtype.

    Raises:
        ValueError: on shapes that do not fit one another, a dtype that is not floating, an unknown
            implementation or one that `value`'s device, or a wish for gradients, rules out.

    Source: Deformable DETR, equation 3; signature of the original's `MSDeformAttnFunction`.
    """
    levels = _levels(value, spatial_shapes)
    batch, _, heads, _ = value.shape
    fits = (batch, heads, len(levels), 2)
    shape = sampling_locations.shape
    if len(shape) != 6 or (shape[0], shape[2], shape[3], shape[5]) != fits:
        raise ValueError(
            f"sampling_locations {tuple(shape)} must be (B, Q, M, L, P, 2) with B, M, L of "
            f"value and spatial_shapes: {fits[:3]}"
        )
    if shape[:-1] != attention_weights.shape:
        raise ValueError(
            f"sampling_locations {tuple(shape)} and attention_weights "
            f"{tuple(attention_weights.shape)} must agree in all but the last axis"
        )
    name = _chosen(implementation, value, sampling_locations, attention_weights)
    if not batch * shape[1]:
        return value.new_empty(batch, shape[1], heads * value.shape[3])
    if name == "triton":
        from model.ops.triton import ms_deform_attn_triton  # GPUs alone need Triton

        return ms_deform_attn_triton(value, levels, sampling_locations, attention_weights)
    if name == "fused_cpu":
        from model.ops.fused_cpu import ms_deform_attn_fused_cpu  # imports Numba, see cpu_threads

        return ms_deform_attn_fused_cpu(value, levels, sampling_locations, attention_weights)
    return _IMPLEMENTATIONS[name](value, levels, sampling_locations, attention_weights)


def fused_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Shapes,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    reference_points: Tensor,
    valid_ratios: Tensor,
    valid_sizes: Tensor | None = None,
    offset_bias: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """The op from what the query's linear layers say: nothing is stored between them and the sum.

    Equal to `ms_deform_attn` of `value` with its padding set to 0, at `sampling_locations`, with
    the softmax of the logits over levels and points. "triton" (and "fused_cpu" where no gradient is
    wanted) does all in one pass; the others compose it. Locations, softmax and sum are fp32.

    Args:
        value: (B, S, M, D); its last two axes contiguous.
        spatial_shapes: (L, 2) height and width of each level.
        sampling_offsets: (B, Q, M * L * P * 2).
        attention_logits: (B, Q, M * L * P).
        reference_points: (B, Q, 2) or (B, Q, 4), relative to the valid area; fp32.
        valid_ratios: (B, L, 2), valid share of each level's width and height; fp32.
        valid_sizes: (B, L, 2) int64, valid height and width of each level, at least 1 x 1. The rest
            of `value`, at the bottom and right, counts as zero. None: all is valid.
        offset_bias: (M * L * P * 2,), added to the offsets in fp32; None: nothing. What trained
            models add is most of an offset, and its rounding most of what half precision costs.
        implementation: as in `ms_deform_attn`.

    Returns:
        (B, Q, M * D) of `value`'s dtype.

    Raises:
        ValueError: as `ms_deform_attn`.
    """
    levels = _levels(value, spatial_shapes)
    batch, _, heads, _ = value.shape
    queries, samples = attention_logits.shape[1:]
    points = samples // (heads * len(levels))
    for name, tensor, fits in (
        ("attention_logits", attention_logits, [(batch, queries, heads * len(levels) * points)]),
        ("sampling_offsets", sampling_offsets, [(batch, queries, samples * 2)]),
        ("reference_points", reference_points, [(batch, queries, 2), (batch, queries, 4)]),
        ("valid_ratios", valid_ratios, [(batch, len(levels), 2)]),
        ("valid_sizes", valid_sizes, [(batch, len(levels), 2)]),
        ("offset_bias", offset_bias, [(samples * 2,)]),
    ):
        if tensor is not None and tuple(tensor.shape) not in fits:
            wanted = " or ".join(map(str, fits))
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}: it must be {wanted}")
    if valid_sizes is not None and valid_sizes.dtype != torch.int64:
        raise ValueError(f"valid_sizes is {valid_sizes.dtype}: it must be int64")
    linear = (sampling_offsets, attention_logits)
    tensors = [value, *linear, reference_points, valid_ratios]
    tensors += [] if offset_bias is None else [offset_bias]
    chosen = _chosen(implementation, *tensors)
    if not batch * queries:
        return value.new_empty(batch, queries, heads * value.shape[3])
    if chosen == "triton":
        from model.ops.triton import fused_ms_deform_attn_triton

        return fused_ms_deform_attn_triton(
            value, levels, *linear, reference_points, valid_ratios, valid_sizes, offset_bias
        )
    padding_mask = None if valid_sizes is None else padding_of(valid_sizes, levels)
    if chosen == "fused_cpu" and not _learning(*tensors):
        from model.ops.fused_cpu import fused_ms_deform_attn_cpu

        return fused_ms_deform_attn_cpu(
            value, levels, *linear, reference_points, valid_ratios, padding_mask, offset_bias
        )
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[..., None, None], 0.0)
    if offset_bias is not None:
        sampling_offsets = sampling_offsets.float() + offset_bias.float()
    split = (batch, queries, heads, len(levels), points)
    offsets = sampling_offsets.view(*split, 2)
    locations = sampling_locations(offsets, reference_points, valid_ratios, levels)
    weights = attention_logits.view(*split[:3], -1).float().softmax(-1).view(split)
    return ms_deform_attn(value, levels, None, locations, weights, chosen)


def _levels(value: Tensor, spatial_shapes: Shapes) -> tuple[tuple[int, int], ...]:
    """The levels as Python ints, checked against `value`."""
    if value.dim() != 4 or not value.is_floating_point():
        raise ValueError(f"value is {value.dtype} of {tuple(value.shape)}: floats (B, S, M, D)")
    shapes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    levels = tuple((int(height), int(width)) for height, width in shapes)
    rows = sum(height * width for height, width in levels)
    if value.shape[1] != rows:
        raise ValueError(f"value has {value.shape[1]} rows, spatial_shapes {levels} make {rows}")
    return levels


def _chosen(implementation: Implementation, *tensors: Tensor) -> Implementation:
    """What to run on these tensors; `tensors[0]` is the value."""
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation={implementation!r}: choose {get_args(Implementation)}")
    device, learning = tensors[0].device, _learning(*tensors)
    if implementation == "auto":
        if device.type == "cpu":
            return "fused_cpu"
        if device.type != "cuda" or learning or tensors[0].dtype == torch.float64:
            return "embedding_bag"
        lacking = lacking_for_triton()
        if lacking:
            warn_once(f"{lacking}: the attention takes a slower path")
        return "embedding_bag" if lacking else "triton"
    if implementation == "fused_cpu" and device.type != "cpu":
        raise ValueError(f"implementation='fused_cpu' needs CPU tensors, not {device}")
    if implementation == "triton" and lacking_for_triton():
        raise ValueError(f"implementation='triton': {lacking_for_triton()}")
    if implementation == "triton" and learning:
        raise ValueError("implementation='triton' has no gradient: run it under torch.no_grad()")
    return implementation


def _learning(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def by_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run for tensors there."""
    return device.type == "cuda" and not lacking_for_triton()


@cache
def capability_of(device: torch.device) -> str:
    """The compute capability of a GPU ("9.0"); empty for a CPU."""
    if device.type != "cuda":
        return ""
    return "{}.{}".format(*torch.cuda.get_device_capability(device))


@cache
def lacking_for_triton() -> str:
    """What this machine lacks to run Triton's kernels; empty where nothing."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        return "Triton needs a C compiler to launch its kernels, and there is none"
    return ""


@cache
def warn_once(text: str) -> None:
    """A warning, the first time in this process."""
    warnings.warn(text, stacklevel=4)


_IMPLEMENTATIONS = {
    "reference": ms_deform_attn_reference,
    "grid_sample": ms_deform_attn_grid_sample,
    "embedding_bag": ms_deform_attn_embedding_bag,
}
