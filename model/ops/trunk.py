"""What the trunk's convolutions need on GPUs where libraries do their bias and ReLU.

Images have their channels last in memory. `valid` (B, 2) int64 is the height and width of each
image that is no padding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.pointwise import channels_last

ZEROS, ZERO_WARPS = 1024, 4  # numbers that a program writes at once
CELLS, WARPS = 128, 4  # blocks of pixels that a program makes: one for each thread
BEFORE, AFTER = 2, 1  # blocks of the border, at the top and left, and at the bottom and right
DEPTH = 16  # channels of a block: 12 numbers and 4 zeros, so that 16 bytes are read at once


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator]
def zero_padding_forward(  # type: ignore[no-untyped-def]
    x_ptr,  # (B, H | W, C), overwritten
    valid_ptr,  # (B, 2) int64
    height,
    width,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The padding of a line is its end, which is one piece of memory."""
    line = tl.program_id(0)
    area = valid_ptr + line // height * 2
    rows, columns = tl.load(area).to(tl.int32), tl.load(area + 1).to(tl.int32)
    columns = tl.where(line % height < rows, columns, 0)
    begin = x_ptr + line.to(tl.int64) * (width * CHANNELS)
    zero = tl.zeros((BLOCK,), x_ptr.dtype.element_ty)
    for first in range(columns * CHANNELS, width * CHANNELS, BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(begin + at, zero, mask=at < width * CHANNELS)


@torch.library.custom_op("detr_batch::zero_padding_", mutates_args=("x",))
def zero_padding_(x: Tensor, valid: Tensor) -> None:
    """Set `x` (B, C, H, W) to 0 beyond what is valid. It reads none of `x`, and writes no more.

    ValueError where channels are not last in memory.
    """
    batch, height, width, channels = channels_last(x).shape
    with torch.cuda.device_of(x):
        zero_padding_forward[(batch * height,)](
            x, valid, height, width, CHANNELS=channels, BLOCK=ZEROS, num_warps=ZERO_WARPS
        )


@triton.jit(do_not_specialize=["cells", "height", "width", "rows", "columns"])  # type: ignore[untyped-decorator]
def normalize_blocks_forward(  # type: ignore[no-untyped-def]
    pixels_ptr,  # (B, H, W, 3) uint8
    mean_ptr,  # (3,) fp32
    deviation_ptr,  # (3,) fp32
    valid_ptr,  # (B, 2) int64
    out_ptr,  # (B, rows, columns, DEPTH)
    cells,  # B * rows * columns
    height,
    width,
    rows,
    columns,
    MASKED: tl.constexpr,
    BEFORE: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = cell < cells
    place = tl.arange(0, DEPTH)[None, :]
    colour = place // 4
    image = cell // (rows * columns)
    top = (cell // columns % rows - BEFORE) * 2
    left = (cell % columns - BEFORE) * 2
    bottom, right = height, width
    if MASKED:
        bottom = tl.load(valid_ptr + image * 2, mask=live, other=0).to(tl.int32)[:, None]
        right = tl.load(valid_ptr + image * 2 + 1, mask=live, other=0).to(tl.int32)[:, None]
    y, x = top[:, None] + place // 2 % 2, left[:, None] + place % 2
    inside = live[:, None] & (colour < 3) & (y >= 0) & (y < bottom) & (x >= 0) & (x < right)
    plane = pixels_ptr + image.to(tl.int64) * (height * width * 3)
    pixel = plane[:, None] + ((y * width + x) * 3 + colour)
    number = tl.load(pixel, mask=inside, other=0).to(tl.float32)
    mean = tl.load(mean_ptr + colour, mask=colour < 3, other=0.0)
    deviation = tl.load(deviation_ptr + colour, mask=colour < 3, other=1.0)
    number = tl.where(inside, (number - mean) / deviation, 0.0)
    out = out_ptr + cell.to(tl.int64)[:, None] * DEPTH + place
    tl.store(out, number.to(out_ptr.dtype.element_ty), mask=live[:, None])


def _new_blocks(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    batch, height, width, _ = pixels.shape
    rows, columns = ((side + 1) // 2 + BEFORE + AFTER for side in (height, width))
    return pixels.new_empty(batch, rows, columns, DEPTH, dtype=dtype)


@torch.library.custom_op("detr_batch::normalize_blocks", mutates_args=())
def normalize_blocks(
    pixels: Tensor, mean: Tensor, deviation: Tensor, valid: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The blocks (`model.stem.blocks_of`) of what `normalize_pixels` returns, in one pass.

    `pixels` (B, H, W, 3) uint8 -> (B, 16, (H + 1) // 2 + 3, (W + 1) // 2 + 3), channels last.
    """
    pixels = pixels.contiguous()
    out = _new_blocks(pixels, dtype)
    cells = out.numel() // DEPTH
    with torch.cuda.device_of(pixels):
        normalize_blocks_forward[(triton.cdiv(cells, CELLS),)](
            pixels,
            mean,
            deviation,
            mean if valid is None else valid,
            out,
            cells,
            pixels.shape[1],
            pixels.shape[2],
            out.shape[1],
            out.shape[2],
            MASKED=valid is not None,
            BEFORE=BEFORE,
            DEPTH=DEPTH,
            BLOCK=CELLS,
            num_warps=WARPS,
        )
    return out.permute(0, 3, 1, 2)


@normalize_blocks.register_fake
def _(pixels: Tensor, mean: Tensor, deviation: Tensor, valid: object, dtype: torch.dtype) -> Tensor:
    return _new_blocks(pixels, dtype).permute(0, 3, 1, 2)
