"""The op on GPUs: one Triton kernel from raw offsets and logits to the sum, forward only.

Locations, softmax, padding and gather happen in registers; nothing lies in memory between the
query's linear layers and the output. Locations, weights and sums are fp32 in every dtype; where
ways.py says so, the four corners of a sample of 16 bits are summed in its own dtype.
"""

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops import capability_of
from model.ops.launches import Launch, launch_of
from model.ops.sampling import level_rows
from model.ops.ways import CORNERS, FP32, HALF, way_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit(do_not_specialize=["queries", "length"])  # type: ignore[untyped-decorator]
def msda_forward(  # type: ignore[no-untyped-def]
    value_ptr,  # (B, S, | M, D), rows `value_stride` apart
    offsets_ptr,  # (B, Q, | M, L, P, 2), or locations; rows `offsets_stride` apart
    logits_ptr,  # (B, Q, | M, L, P), or weights; rows `logits_stride` apart
    reference_ptr,  # (B, Q, | REFERENCE) fp32
    ratios_ptr,  # (B, | L, 2) fp32
    levels_ptr,  # (L, 3) int32: height, width, first row
    valid_ptr,  # (B, | L, 2) int64: valid height and width; what is beyond counts as 0
    bias_ptr,  # (M, L, P, 2) fp32, added to offsets
    out_ptr,  # (B, Q, | M, D)
    queries,
    length,
    value_stride,
    offsets_stride,
    logits_stride,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_2: tl.constexpr,  # the next power of two
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    POINTS_2: tl.constexpr,
    SAMPLES_2: tl.constexpr,  # LEVELS * POINTS, to the next power of two
    REFERENCE: tl.constexpr,  # 2 or 4; 0: offsets are locations, and logits are weights
    PADDED: tl.constexpr,
    BIASED: tl.constexpr,
    HALF_CORNERS: tl.constexpr,  # the corners of a sample are summed in the value's dtype
    BLOCK: tl.constexpr,  # queries of one program
):
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = query < queries
    row = image * queries + query
    channel = tl.arange(0, CHANNELS_2)
    samples: tl.constexpr = LEVELS * POINTS
    logits = logits_ptr + (row * logits_stride + head * samples)[None, :]
    offsets = offsets_ptr + (row * offsets_stride + head * 2 * samples)[None, :]
    values = value_ptr + image * length * value_stride + head * CHANNELS
    values += channel[None, None, :]

    total = tl.full((BLOCK,), 1.0, tl.float32)  # of the softmax
    if REFERENCE:
        sample = tl.arange(0, SAMPLES_2)[:, None]
        every = tl.load(
            logits + sample, mask=(sample < samples) & live[None, :], other=float("-inf")
        ).to(tl.float32)
        largest = tl.where(live, tl.max(every, axis=0), 0.0)
        total = tl.where(live, tl.sum(tl.exp(every - largest[None, :]), axis=0), 1.0)
        reference = reference_ptr + row * REFERENCE
        reference_x = tl.load(reference, mask=live, other=0.0)
        reference_y = tl.load(reference + 1, mask=live, other=0.0)
        if REFERENCE == 4:
            extent_x = tl.load(reference + 2, mask=live, other=0.0) * (0.5 / POINTS)
            extent_y = tl.load(reference + 3, mask=live, other=0.0) * (0.5 / POINTS)

    point = tl.arange(0, POINTS_2)[:, None]
    wanted = (point < POINTS) & live[None, :]
    if HALF_CORNERS:
        weighted = tl.zeros((BLOCK, CHANNELS_2), tl.float32)
    else:
        weighted = tl.zeros((POINTS_2, BLOCK, CHANNELS_2), tl.float32)
    for level in range(LEVELS):
        height = tl.load(levels_ptr + level * 3)
        width = tl.load(levels_ptr + level * 3 + 1)
        start = tl.load(levels_ptr + level * 3 + 2)
        end_x, end_y = width, height  # of what may be read
        if PADDED:
            valid = valid_ptr + (image * LEVELS + level) * 2
            end_y = tl.load(valid).to(tl.int32)
            end_x = tl.load(valid + 1).to(tl.int32)

        # Points x queries: where to look, and how much it counts.
        at = level * POINTS + point
        weight = tl.load(logits + at, mask=wanted, other=0.0).to(tl.float32)
        x = tl.load(offsets + at * 2, mask=wanted, other=0.0).to(tl.float32)
        y = tl.load(offsets + at * 2 + 1, mask=wanted, other=0.0).to(tl.float32)
        if REFERENCE == 0:
            x, y = x * width - 0.5, y * height - 0.5
        else:
            weight = tl.exp(weight - largest[None, :])
            valid_x = width * tl.load(ratios_ptr + (image * LEVELS + level) * 2)
            valid_y = height * tl.load(ratios_ptr + (image * LEVELS + level) * 2 + 1)
            if BIASED:
                bias = bias_ptr + (head * samples + at) * 2
                x += tl.load(bias, mask=point < POINTS, other=0.0)
                y += tl.load(bias + 1, mask=point < POINTS, other=0.0)
            if REFERENCE == 4:
                x, y = x * (extent_x * valid_x)[None, :], y * (extent_y * valid_y)[None, :]
            x += (reference_x * valid_x - 0.5)[None, :]
            y += (reference_y * valid_y - 0.5)[None, :]
        near = wanted & (x > -1) & (x < end_x) & (y > -1) & (y < end_y)  # not so for NaN
        x, y = tl.where(near, x, 0.0), tl.where(near, y, 0.0)
        left, top = tl.floor(x), tl.floor(y)
        right_share, lower_share = x - left, y - top
        column, line = left.to(tl.int32), top.to(tl.int32)
        first = start + line * width + column

        # Points x queries x channels: each thread has all points of its query and channels.
        if HALF_CORNERS:
            mixed = tl.zeros((POINTS_2, BLOCK, CHANNELS_2), value_ptr.dtype.element_ty)
        for corner in tl.static_range(4):
            inside = near & ((column + 1 < end_x) if corner % 2 else (column >= 0))
            inside = inside & ((line + 1 < end_y) if corner // 2 else (line >= 0))
            cell = first + corner % 2 + (corner // 2) * width
            share = weight * (right_share if corner % 2 else 1.0 - right_share)
            share = share * (lower_share if corner // 2 else 1.0 - lower_share)
            share = tl.where(inside, share, 0.0)[:, :, None]
            here = share != 0
            if CHANNELS != CHANNELS_2:
                here = here & (channel < CHANNELS)[None, None, :]
            rows = values + (tl.where(inside, cell, 0) * value_stride)[:, :, None]
            loaded = tl.load(rows, mask=here, other=0.0)
            if HALF_CORNERS:
                share = tl.broadcast_to(share.to(loaded.dtype), loaded.shape)
                mixed = tl.fma(loaded, share, mixed)
            else:
                weighted += loaded.to(tl.float32) * share
        if HALF_CORNERS:
            weighted += tl.sum(mixed.to(tl.float32), axis=0)
    if not HALF_CORNERS:
        weighted = tl.sum(weighted, axis=0)

    out = out_ptr + (row * HEADS + head)[:, None] * CHANNELS + channel[None, :]
    tl.store(
        out,
        (weighted / total[:, None]).to(out_ptr.dtype.element_ty),
        mask=live[:, None] & (channel < CHANNELS)[None, :],
    )


@cache  # without a limit, 512 bytes each: CUDA graphs know these tensors by address
def levels_on(device: torch.device, spatial_shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """(L, 3) int32 on the device: height, width, and first row of each level."""
    return torch.tensor(level_rows(spatial_shapes), dtype=torch.int32, device=device)


@torch.library.custom_op("detr_batch::ms_deform_attn", mutates_args=())
def msda(
    value: Tensor,
    offsets: Tensor,
    logits: Tensor,
    reference: Tensor,
    ratios: Tensor,
    levels: Tensor,
    valid: Tensor | None,
    bias: Tensor | None,
    raw: bool,
    corners: str = "",
    block: int = 0,
    warps: int = 0,
) -> Tensor:
    """Launch the kernel; `raw` as opposed to locations and weights. Gives (B, Q, M * D).

    `corners` is a way of ways.CORNERS. It is the table's where it is empty; `block` and `warps` are
    where `block` is 0.
    """
    batch, length, heads, channels = value.shape
    queries, count = offsets.shape[1], len(levels)
    points = logits.shape[2] // (heads * count)
    out = value.new_empty(batch, queries, heads * channels)
    corners = corners or _corners(value)
    if not block:
        launch = launch_of(batch * queries, corners, capability_of(value.device))
        block, warps = launch.block, launch.warps
    grid = (triton.cdiv(queries, block), heads, batch)
    with torch.cuda.device_of(value):  # Triton launches on the current device
        msda_forward[grid](
            value,
            offsets,
            logits,
            reference,
            ratios,
            levels,
            valid if valid is not None else levels,  # not read
            bias if bias is not None else ratios,  # not read
            out,
            queries,
            length,
            value.stride(1),
            offsets.stride(1),
            logits.stride(1),
            HEADS=heads,
            CHANNELS=channels,
            CHANNELS_2=triton.next_power_of_2(channels),
            LEVELS=count,
            POINTS=points,
            POINTS_2=triton.next_power_of_2(points),
            SAMPLES_2=triton.next_power_of_2(count * points),
            REFERENCE=reference.shape[-1] if raw else 0,
            PADDED=valid is not None,
            BIASED=bias is not None,
            HALF_CORNERS=corners == HALF,
            BLOCK=block,
            num_warps=warps,
            enable_fp_fusion=True,
        )
    return out


@msda.register_fake
def _(value: Tensor, offsets: Tensor, *_: object) -> Tensor:
    return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


def _checked(value: Tensor, *others: Tensor) -> None:
    """ValueError for what the kernel does not take."""
    if value.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"implementation='triton' needs a GPU, and the tensors are on {value.device}: "
            "leave the implementation at 'auto'"
        )
    if value.dtype not in DTYPES:
        raise ValueError(f"implementation='triton' takes {DTYPES}, not {value.dtype}")
    if value.shape[1] * value.stride(1) >= 2**31:
        raise ValueError(
            f"implementation='triton' counts places in 32 bits: {value.shape[1]} rows of "
            f"{value.stride(1)} numbers are too many for an image"
        )
    if any(other.device != value.device for other in others):
        raise ValueError("all tensors of the op must be on one device")


def _corners(value: Tensor) -> str:
    """How corners of this value are to be summed: a way of ways.CORNERS."""
    if value.dtype == torch.float32:
        return FP32
    return way_of(CORNERS, capability_of(value.device))


def _rows(tensor: Tensor) -> Tensor:
    """The tensor itself where images follow one another and rows are contiguous, else a copy."""
    inner = tensor[0, 0]
    evenly = tensor.stride(0) == tensor.shape[1] * tensor.stride(1)
    return tensor if evenly and inner.is_contiguous() else tensor.contiguous()


def ms_deform_attn_triton(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Shapes as in `model.ops.ms_deform_attn`. ValueError off the GPU or for other dtypes."""
    _checked(value, sampling_locations, attention_weights)
    levels = levels_on(value.device, tuple(spatial_shapes))
    unused = sampling_locations
    return msda(
        _rows(value),
        sampling_locations.flatten(2).contiguous(),
        attention_weights.flatten(2).contiguous(),
        unused,
        unused,
        levels,
        None,
        None,
        False,
    )


def fused_ms_deform_attn_triton(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    reference_points: Tensor,
    valid_ratios: Tensor,
    valid_sizes: Tensor | None,
    offset_bias: Tensor | None,
    corners: str = "",
    launch: Launch | None = None,
) -> Tensor:
    """Shapes as in `model.ops.fused_ms_deform_attn`. ValueError as `ms_deform_attn_triton`.

    `corners`, a way of ways.CORNERS, and `launch` are the tables' unless given.
    """
    optional = (tensor for tensor in (valid_sizes, offset_bias) if tensor is not None)
    others = (sampling_offsets, attention_logits, reference_points, valid_ratios, *optional)
    _checked(value, *others)
    return msda(
        _rows(value),
        _rows(sampling_offsets),
        _rows(attention_logits),
        reference_points.float().contiguous(),
        valid_ratios.float().contiguous(),
        levels_on(value.device, tuple(spatial_shapes)),
        None if valid_sizes is None else valid_sizes.contiguous(),
        None if offset_bias is None else offset_bias.float().contiguous(),
        True,
        corners,
        launch.block if launch else 0,
        launch.warps if launch else 0,
    )
