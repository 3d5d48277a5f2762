"""A linear layer whose product ends in a sum and a layer norm, on GPUs.

A program computes whole rows of the product, so that it has all numbers of each norm in registers:
the product itself is neither written nor read again, nor rounded. Inputs have 16 bits, sums are
fp32. Each row is summed in the order of its own channels, wherever in a program it stands.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops import capability_of
from model.ops.launches import Launch, launch_of_products

DEPTH, STAGES = 32, 4  # channels that are loaded at once, and loads under way
DTYPES = (torch.float16, torch.bfloat16)


@triton.jit
def _add(  # type: ignore[no-untyped-def]
    product, bias_ptr, residual_ptr, channel, at, live
):
    """A product plus the bias of its channels and the residual, fp32."""
    product += tl.load(bias_ptr + channel).to(tl.float32)
    return product + tl.load(residual_ptr + at, mask=live, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _write(  # type: ignore[no-untyped-def]
    normal,  # (ROWS, HALF), before scale and shift
    scale_ptr,
    shift_ptr,
    table_ptr,
    entry,  # (ROWS, 1) of the table
    out_ptr,
    placed_ptr,
    channel,  # (1, HALF)
    at,  # (ROWS, HALF)
    live,
    PLACED: tl.constexpr,
    HALF: tl.constexpr,
):
    """Write one half of the rows of a norm, and that plus its positions."""
    normal *= tl.load(scale_ptr + channel).to(tl.float32)
    normal += tl.load(shift_ptr + channel).to(tl.float32)
    tl.store(out_ptr + at, normal.to(out_ptr.dtype.element_ty), mask=live)
    if PLACED:
        normal += tl.load(table_ptr + (entry * HALF + channel % HALF), mask=live, other=0.0)
        tl.store(placed_ptr + at, normal.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["count", "length", "entries"])  # type: ignore[untyped-decorator]
def linear_add_norm_forward(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, K)
    weight_ptr,  # (C, K)
    bias_ptr,  # (C,)
    residual_ptr,  # (N, C)
    scale_ptr,  # (C,), of the norm
    shift_ptr,  # (C,), of the norm
    table_ptr,  # (B, E, C / 2) fp32, positions of lines and of columns
    entries_ptr,  # (S, 2) int32, the rows of the table for each cell
    out_ptr,  # (N, C)
    placed_ptr,  # (N, C)
    count,  # N = B * S
    length,  # S
    entries,  # E
    eps,
    INPUTS: tl.constexpr,  # K
    CHANNELS: tl.constexpr,  # C
    PLACED: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    HALF: tl.constexpr = CHANNELS // 2
    begin = tl.program_id(0) * ROWS
    inner = tl.arange(0, ROWS)[:, None]
    row = begin + inner
    live = row < count
    depth = tl.arange(0, DEPTH)
    first = tl.arange(0, HALF)[None, :]  # the channels of the first half
    second = HALF + first
    x = x_ptr + begin.to(tl.int64) * INPUTS + (inner * INPUTS + depth[None, :])
    weight = weight_ptr + (first * INPUTS + depth[:, None])
    left = tl.zeros((ROWS, HALF), tl.float32)
    right = tl.zeros((ROWS, HALF), tl.float32)
    for done in tl.range(0, INPUTS, DEPTH, num_stages=STAGES):
        rows = tl.load(x + done, mask=live, other=0.0)
        left = tl.dot(rows, tl.load(weight + done), left)
        right = tl.dot(rows, tl.load(weight + (HALF * INPUTS + done)), right)
    start = begin.to(tl.int64) * CHANNELS
    residual, out, placed = residual_ptr + start, out_ptr + start, placed_ptr + start
    at = inner * CHANNELS + first
    left = _add(left, bias_ptr, residual, first, at, live)
    right = _add(right, bias_ptr, residual, second, at + HALF, live)
    mean = (tl.sum(left, axis=1) + tl.sum(right, axis=1)) / CHANNELS
    left -= mean[:, None]
    right -= mean[:, None]
    squares = tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)
    share = 1.0 / tl.sqrt(squares / CHANNELS + eps)[:, None]
    line, column = row, row  # not read
    if PLACED:
        entry = entries_ptr + row % length * 2
        line = row // length * entries + tl.load(entry, mask=live, other=0)
        column = row // length * entries + tl.load(entry + 1, mask=live, other=0)
    _write(
        left * share,
        scale_ptr,
        shift_ptr,
        table_ptr,
        line,
        out,
        placed,
        first,
        at,
        live,
        PLACED,
        HALF,
    )
    _write(
        right * share,
        scale_ptr,
        shift_ptr,
        table_ptr,
        column,
        out,
        placed,
        second,
        at + HALF,
        live,
        PLACED,
        HALF,
    )


def ends_in_norm(weight: Tensor) -> bool:
    """Whether the kernel takes a linear layer's weight (C, K)."""
    channels, inputs = weight.shape
    whole = channels == triton.next_power_of_2(channels) and 32 <= channels <= 256
    return weight.dtype in DTYPES and whole and inputs % DEPTH == 0


def registers_of(launch: Launch, channels: int) -> int:
    """The most registers of a thread: two for each of its sums, and at least 128.

    With 64 rows of 256 channels a multiprocessor then has room for two programs.
    """
    return min(255, max(128, 2 * launch.block * channels // (32 * launch.warps)))


@torch.library.custom_op("detr_batch::linear_add_norm", mutates_args=())
def linear_add_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    table: Tensor | None = None,
    entries: Tensor | None = None,
    block: int = 0,
    warps: int = 0,
) -> list[Tensor]:
    """The layer norm of x weight^T + bias + residual, and that plus positions if they are given.

    Args:
        x: (..., K) of 16 bits.
        weight: (C, K) of the dtype of `x`, as all others; see `ends_in_norm` for C and K.
        bias: (C,), of the layer.
        residual: (..., C); (B, S, C) if there are positions.
        scale, shift: (C,), of the norm.
        table, entries: see `SeparablePositions`.
        block, warps: the launch; that of the table (launches.py) if `block` is 0.
    """
    x, residual = x.contiguous(), residual.contiguous()
    channels, inputs = weight.shape
    count = residual.numel() // channels
    launch = Launch(block, warps) if block else launch_of_products(capability_of(x.device))
    places = table is not None and entries is not None
    if table is None or entries is None:
        table, entries = weight[None], weight  # are not read
    outputs = [torch.empty_like(residual) for _ in range(1 + places)]
    with torch.cuda.device_of(x):
        linear_add_norm_forward[(triton.cdiv(count, launch.block),)](
            x,
            weight,
            bias,
            residual,
            scale,
            shift,
            table,
            entries,
            outputs[0],
            outputs[-1],
            count,
            len(entries),
            table.shape[1],
            eps,
            INPUTS=inputs,
            CHANNELS=channels,
            PLACED=places,
            ROWS=launch.block,
            DEPTH=DEPTH,
            STAGES=STAGES,
            num_warps=launch.warps,
            maxnreg=registers_of(launch, channels),
        )
    return outputs


@linear_add_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    table: Tensor | None = None,
    *_: object,
) -> list[Tensor]:
    out = torch.empty_like(residual, memory_format=torch.contiguous_format)
    return [out] if table is None else [out, torch.empty_like(out)]
