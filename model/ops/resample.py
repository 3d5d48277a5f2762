"""Resize images on a GPU, to the bytes that torch writes on a CPU.

A kernel makes both passes of `model/resample.py`: each pixel is made of some, which its neighbours
are made of too, so that they come from the cache. `resample` enlarges the images of a batch, each
pixel from four. `resize` takes one image and any scale; README.md says why there are two.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 256, 2  # pixels of a program: 4 a thread
CHANNELS = 3


@triton.jit  # type: ignore[untyped-decorator]
def _between(  # type: ignore[no-untyped-def]
    first,  # int32
    second,
    weight,  # of the second, of 2**BITS
    BITS: tl.constexpr,
):
    """The weighted sum of two bytes, rounded to a byte."""
    return first + (((second - first) * weight + (1 << (BITS - 1))) >> BITS)


@triton.jit(do_not_specialize=["height"])  # type: ignore[untyped-decorator]
def resample_forward(  # type: ignore[no-untyped-def]
    pixels_ptr,  # (B, H, W, 3) uint8
    taps_ptr,  # (B, H + W, 2) int32
    out_ptr,  # (B, H, W, 3) uint8
    height,
    width,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    line = tl.program_id(0)  # of all images
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < width
    image, row = line // height, line % height
    taps = taps_ptr + image * (height + width) * 2
    above, weight_below = tl.load(taps + row * 2), tl.load(taps + row * 2 + 1)
    taps += height * 2
    left = tl.load(taps + at * 2, mask=live, other=0)
    weight_right = tl.load(taps + at * 2 + 1, mask=live, other=0)
    # A neighbour beyond the canvas weighs 0.
    below, right = tl.minimum(above + 1, height - 1), tl.minimum(left + 1, width - 1)
    first = image.to(tl.int64) * height
    upper = pixels_ptr + (first + above) * (width * 3)
    lower = pixels_ptr + (first + below) * (width * 3)
    out = out_ptr + line.to(tl.int64) * (width * 3) + at * 3
    for channel in tl.static_range(3):
        of_left, of_right = left * 3 + channel, right * 3 + channel
        over = _between(
            tl.load(upper + of_left, mask=live, other=0).to(tl.int32),
            tl.load(upper + of_right, mask=live, other=0).to(tl.int32),
            weight_right,
            BITS,
        )
        under = _between(
            tl.load(lower + of_left, mask=live, other=0).to(tl.int32),
            tl.load(lower + of_right, mask=live, other=0).to(tl.int32),
            weight_right,
            BITS,
        )
        tl.store(out + channel, _between(over, under, weight_below, BITS).to(tl.uint8), mask=live)


def resample(pixels: Tensor, taps: Tensor, bits: int) -> Tensor:
    """Enlarge images that lie at the top left of their canvases (B, H, W, 3) uint8, contiguous.

    `taps` (B, H + W, 2) int32 is `model.resample.taps_of_batch`, with weights of 2**bits, on the
    device of the pixels. Returns (B, H, W, 3) uint8, which is that of the canvas' first pixel
    beyond the enlarged images.
    """
    batch, height, width, _ = pixels.shape
    out = torch.empty_like(pixels)
    with torch.cuda.device_of(pixels):
        resample_forward[(batch * height, triton.cdiv(width, BLOCK))](
            pixels, taps, out, height, width, BITS=bits, BLOCK=BLOCK, num_warps=WARPS
        )
    return out


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        *("height", "width", "out_width", "row_stride", "column_stride", "channel_stride"),
        *("row_taps", "column_taps", "row_bits", "column_bits"),
    ]
)
def resize_forward(  # type: ignore[no-untyped-def]
    pixels_ptr,  # (h, w, | 3) uint8, by its strides
    rows_ptr,  # (1 + row_taps, H) int32, `Axis.table`
    columns_ptr,  # (1 + column_taps, W) int32
    out_ptr,  # (H, W, 3) uint8
    height,
    width,
    out_width,
    row_stride,
    column_stride,
    channel_stride,
    row_taps,
    column_taps,
    row_bits,
    column_bits,
    BLOCK: tl.constexpr,
):
    line, channel = tl.program_id(0), tl.program_id(2)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < out_width
    out_height = tl.num_programs(0)
    top = tl.load(rows_ptr + line)
    left = tl.load(columns_ptr + at, mask=live, other=0)
    total = tl.full((BLOCK,), 0, tl.int32) + (1 << (row_bits - 1))
    for y in range(row_taps):
        # A neighbour beyond the image weighs 0.
        row = tl.minimum(top + y, height - 1).to(tl.int64)
        source = pixels_ptr + row * row_stride + channel * channel_stride
        across = tl.full((BLOCK,), 0, tl.int32) + (1 << (column_bits - 1))
        for x in range(column_taps):
            weight = tl.load(columns_ptr + (x + 1) * out_width + at, mask=live, other=0)
            column = tl.minimum(left + x, width - 1) * column_stride
            across += weight * tl.load(source + column, mask=live, other=0).to(tl.int32)
        # Rounded weights may sum up to more than one.
        across = tl.minimum(across >> column_bits, 255)
        total += across * tl.load(rows_ptr + (y + 1) * out_height + line)
    out = out_ptr + (line.to(tl.int64) * out_width + at) * 3 + channel
    tl.store(out, tl.minimum(total >> row_bits, 255).to(tl.uint8), mask=live)


def resize(pixels: Tensor, rows: Tensor, columns: Tensor, bits: tuple[int, int]) -> Tensor:
    """Resize an image (h, w, 3) uint8 of any strides; returns (H, W, 3) uint8.

    `rows` (1 + taps, H) and `columns` (1 + taps, W) are tables of `model.resample.Axis`, with
    weights of `bits` of each, on the device of the pixels.
    """
    size = rows.shape[1], columns.shape[1]
    out = torch.empty(*size, CHANNELS, dtype=torch.uint8, device=pixels.device)
    with torch.cuda.device_of(pixels):
        resize_forward[(size[0], triton.cdiv(size[1], BLOCK), CHANNELS)](
            pixels,
            rows,
            columns,
            out,
            *pixels.shape[:2],
            size[1],
            *pixels.stride(),
            len(rows) - 1,
            len(columns) - 1,
            *bits,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return out
