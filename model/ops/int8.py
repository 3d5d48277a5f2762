"""Products of 8-bit integers (narrow.py) on GPUs from compute capability 8.0, and what is behind.

Integers are summed exactly. A tile has as many columns as a group, so that the program that
computes a tile knows the scale of the next layer's input.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.narrow import GROUP, SMALLEST

ROWS, WARPS, STAGES = 128, 8, 3  # of a tile; with GROUP columns it takes 96 KB of shared memory


@triton.jit
def narrow_rows(x):  # type: ignore[no-untyped-def]
    """`x` (N, C) fp32 as integers (N, C), which are still fp32, and their scales (N,)."""
    infinity = float("inf")
    largest = tl.max(tl.where(x == x, tl.abs(x), infinity), axis=1)
    usable = (largest > SMALLEST_NUMBER) & (largest < infinity)
    inverse = 127 / tl.where(usable, largest, 1.0)
    scaled = tl.where(usable[:, None], x * inverse[:, None], 0.0)
    scales = tl.where(largest < infinity, largest * (1 / 127), float("nan"))
    return scaled + tl.where(scaled < 0, -0.5, 0.5), scales  # a cast cuts the rest off


SMALLEST_NUMBER = tl.constexpr(SMALLEST)


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def multiply_forward(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, K) int8
    x_scale_ptr,  # (N,) fp32, or (N, G) if GROUPED
    weight_ptr,  # (D, K) int8
    scale_ptr,  # (D,) fp32
    bias_ptr,  # (D,) fp32
    out_ptr,  # (N, D)
    out_scale_ptr,  # (N, T) fp32, T tiles of columns; written if NARROW
    count,  # N
    WIDTH: tl.constexpr,  # K
    OUT: tl.constexpr,  # D
    GROUPED: tl.constexpr,
    NARROW: tl.constexpr,  # the ReLU of the result as int8
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Tiles of the same rows are neighbours, so that these rows are read from memory once."""
    TILES: tl.constexpr = (OUT + GROUP - 1) // GROUP
    GROUPS: tl.constexpr = (WIDTH + GROUP - 1) // GROUP if GROUPED else 1
    tile = tl.program_id(0) % TILES
    row = (tl.program_id(0) // TILES).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tile * GROUP + tl.arange(0, GROUP)
    depth = tl.arange(0, GROUP)
    present, wanted = row < count, column < OUT
    x_at = x_ptr + row[:, None] * WIDTH + depth[None, :]
    weight_at = weight_ptr + column[None, :] * WIDTH + depth[:, None]
    total = tl.zeros((ROWS, GROUP), tl.float32 if GROUPED else tl.int32)
    for begin in range(0, WIDTH, GROUP):
        within = depth < WIDTH - begin
        x = tl.load(x_at + begin, mask=present[:, None] & within[None, :], other=0)
        weight = tl.load(weight_at + begin, mask=wanted[None, :] & within[:, None], other=0)
        if GROUPED:
            scales = x_scale_ptr + row * GROUPS + begin // GROUP
            product = tl.dot(x, weight, out_dtype=tl.int32).to(tl.float32)
            total += product * tl.load(scales, mask=present, other=0.0)[:, None]
        else:
            total = tl.dot(x, weight, total)
    y = total.to(tl.float32)
    if not GROUPED:
        y *= tl.load(x_scale_ptr + row, mask=present, other=0.0)[:, None]
    y *= tl.load(scale_ptr + column, mask=wanted, other=0.0)[None, :]
    y += tl.load(bias_ptr + column, mask=wanted, other=0.0)[None, :]
    if NARROW:
        y, scales = narrow_rows(tl.where(y < 0, 0.0, y))  # NaN stays
        tl.store(out_scale_ptr + row * TILES + tile, scales, mask=present)
    out = out_ptr + row[:, None] * OUT + column[None, :]
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=present[:, None] & wanted[None, :])


def _multiply(
    x: Tensor, x_scales: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The result, and its scales if it is int8."""
    x, x_scales = x.contiguous(), x_scales.contiguous()
    columns, width = weight.shape
    count, tiles = x.numel() // width, triton.cdiv(columns, GROUP)
    out = x.new_empty(*x.shape[:-1], columns, dtype=dtype)
    narrow = dtype == torch.int8
    scales = x_scales.new_empty(*x.shape[:-1], tiles if narrow else 0)
    with torch.cuda.device_of(x):
        multiply_forward[(triton.cdiv(count, ROWS) * tiles,)](
            x,
            x_scales,
            weight,
            scale,
            bias,
            out,
            scales if narrow else x_scales,  # or what is not written
            count,
            WIDTH=width,
            OUT=columns,
            GROUPED=x_scales.shape[-1] > 1,
            NARROW=narrow,
            ROWS=ROWS,
            GROUP=GROUP,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return out, scales


@torch.library.custom_op("detr_batch::multiply_int8", mutates_args=())
def multiply_int8(
    x: Tensor, x_scales: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    """x @ weight.T * scale + bias of a `dtype`: (..., K), `weight` (D, K) int8 -> (..., D).

    `x` is int8 with `x_scales` (..., 1) or, of GROUP columns each, (..., G). `scale` and `bias`
    (D,) are fp32.
    """
    return _multiply(x, x_scales, weight, scale, bias, dtype)[0]


@multiply_int8.register_fake
def _(
    x: Tensor, x_scales: object, weight: Tensor, scale: object, bias: object, dtype: torch.dtype
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight), dtype=dtype)


@torch.library.custom_op("detr_batch::multiply_relu_int8", mutates_args=())
def multiply_relu_int8(
    x: Tensor, x_scales: Tensor, weight: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The ReLU of `multiply_int8` as int8 (..., D), and its scales (..., G) for GROUP columns."""
    return _multiply(x, x_scales, weight, scale, bias, torch.int8)


@multiply_relu_int8.register_fake
def _(x: Tensor, x_scales: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    groups = triton.cdiv(len(weight), GROUP)
    shape = x.shape[:-1]
    return x.new_empty(*shape, len(weight)), x_scales.new_empty(*shape, groups)
