"""Multi-scale deformable attention: one signature, several implementations."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from model.ops.cpu import ms_deform_attn_embedding_bag, ms_deform_attn_grid_sample
from model.ops.fused_cpu import ms_deform_attn_fused_cpu
from model.ops.reference import ms_deform_attn_reference

Implementation = Literal["auto", "reference", "grid_sample", "embedding_bag", "fused_cpu"]

_IMPLEMENTATIONS = {
    "reference": ms_deform_attn_reference,
    "grid_sample": ms_deform_attn_grid_sample,
    "embedding_bag": ms_deform_attn_embedding_bag,
    "fused_cpu": ms_deform_attn_fused_cpu,
}


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
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
        implementation: "auto" is "fused_cpu" on a CPU and "embedding_bag" elsewhere; the others are
            there to be compared.

    Returns:
        (B, Q, M * D) of `value`'s dtype.

    Raises:
        ValueError: on shapes that do not fit one another, or an unknown implementation.

    Source: Deformable DETR, equation 3; signature of the original's `MSDeformAttnFunction`.
    """
    shapes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    levels = [(int(height), int(width)) for height, width in shapes]
    rows = sum(height * width for height, width in levels)
    if value.shape[1] != rows:
        raise ValueError(f"value has {value.shape[1]} rows, spatial_shapes {levels} make {rows}")
    if sampling_locations.shape[:-1] != attention_weights.shape:
        raise ValueError(
            f"sampling_locations {tuple(sampling_locations.shape)} and attention_weights "
            f"{tuple(attention_weights.shape)} must agree in all but the last axis"
        )
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation={implementation!r}: choose {get_args(Implementation)}")
    fastest = "fused_cpu" if value.device.type == "cpu" else "embedding_bag"
    name = fastest if implementation == "auto" else implementation
    return _IMPLEMENTATIONS[name](value, levels, sampling_locations, attention_weights)
