"""What follows a product on GPUs, in one pass over its result: bias, residual, ReLU, layer norm.

torch runs a kernel for each of them, and at the trunk's resolutions each such pass over memory
costs about as much as the convolution before it. Sums are fp32 in every dtype.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FINISH_BLOCK, FINISH_WARPS = 2048, 4  # 16 half-precision numbers a thread: two wide loads
NORM_ROWS, NORM_WARPS = 8, 4


@triton.jit  # type: ignore[untyped-decorator]
def finish_forward(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, C), overwritten
    bias_ptr,  # (C,)
    residual_ptr,  # (N, C)
    count,  # N * C
    CHANNELS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < count
    x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + at % CHANNELS, mask=live, other=0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + at, mask=live, other=0.0).to(tl.float32)
    if RELU:
        x = tl.where(x > 0, x, tl.where(x == x, 0.0, x))  # NaN stays
    tl.store(x_ptr + at, x.to(x_ptr.dtype.element_ty), mask=live)


@torch.library.custom_op("detr_batch::finish_", mutates_args=("x",))
def finish_(x: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> None:
    """x += bias + residual, then its ReLU. `x` and `residual` have their channels last in memory.

    `x` (B, C, H, W), `residual` alike, `bias` (C,).
    """
    rows = _rows(x)
    other = rows if residual is None else _rows(residual)
    count = rows.numel()
    with torch.cuda.device_of(x):
        finish_forward[(triton.cdiv(count, FINISH_BLOCK),)](
            rows,
            bias,
            other,  # not read without a residual
            count,
            CHANNELS=x.shape[1],
            RESIDUAL=residual is not None,
            RELU=relu,
            BLOCK=FINISH_BLOCK,
            num_warps=FINISH_WARPS,
        )


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) as the (B, H, W, C) that it is in memory. ValueError where it is not."""
    rows = x.permute(0, 2, 3, 1)
    if not rows.is_contiguous():
        raise ValueError(f"channels are not last in memory: {tuple(x.shape)}, {x.stride()}")
    return rows


@triton.jit  # type: ignore[untyped-decorator]
def add_norm_forward(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, C)
    residual_ptr,  # (N, C)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    out_ptr,  # (N, C)
    count,  # N
    eps,
    CHANNELS: tl.constexpr,
    CHANNELS_2: tl.constexpr,  # the next power of two
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS_2)
    present = channel < CHANNELS
    at = row[:, None] * CHANNELS + channel[None, :]
    live = (row < count)[:, None] & present[None, :]
    x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + at, mask=live, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / CHANNELS
    centred = tl.where(present[None, :], x - mean[:, None], 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, axis=1) / CHANNELS + eps)
    weight = tl.load(weight_ptr + channel, mask=present, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=present, other=0.0).to(tl.float32)
    normal = centred / deviation[:, None] * weight[None, :] + bias[None, :]
    tl.store(out_ptr + at, normal.to(out_ptr.dtype.element_ty), mask=live)


@torch.library.custom_op("detr_batch::add_norm", mutates_args=())
def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The layer norm of `x` (..., C) plus `residual`, alike."""
    x, residual = x.contiguous(), residual.contiguous()
    channels = x.shape[-1]
    count = x.numel() // channels
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        add_norm_forward[(triton.cdiv(count, NORM_ROWS),)](
            x,
            residual,
            weight,
            bias,
            out,
            count,
            eps,
            CHANNELS=channels,
            CHANNELS_2=triton.next_power_of_2(channels),
            ROWS=NORM_ROWS,
            num_warps=NORM_WARPS,
        )
    return out


@add_norm.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
