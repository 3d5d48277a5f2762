"""What surrounds the products on GPUs, each a single pass over memory.

torch runs a kernel for every bias, sum, ReLU, norm and mask, and at the trunk's resolutions each
such pass costs about as much as the convolution beside it. Sums are fp32 in every dtype. Images
have their channels last in memory; `valid` (B, 2) int64 is the height and width of each image
that is no padding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.int8 import narrow_rows

BLOCK, WARPS = 2048, 4  # 16 half-precision numbers a thread: two wide loads
ROWS, ROW_WARPS = 8, 4  # of a layer norm
POOLED, POOL_WARPS = 32, 4  # cells of a max-pool


@triton.jit
def _is_valid(  # type: ignore[no-untyped-def]
    cell,  # of (B, H, W), int64
    live,
    valid_ptr,  # (B, 2) int64
    height,
    width,
):
    """Whether each `live` cell is within its image's valid area."""
    cell = cell.to(tl.int32)
    line = cell // width
    area = valid_ptr + line // height * 2
    rows, columns = tl.load(area, mask=live, other=0), tl.load(area + 1, mask=live, other=0)
    return (line % height < rows) & (cell % width < columns)


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator]
def finish_forward(  # type: ignore[no-untyped-def]
    x_ptr,  # (B, H, W, C), overwritten
    bias_ptr,  # (C,)
    residual_ptr,  # (B, H, W, C)
    valid_ptr,  # (B, 2) int64
    count,  # B * H * W * C
    height,
    width,
    CHANNELS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < count
    x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + at % CHANNELS, mask=live, other=0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + at, mask=live, other=0.0).to(tl.float32)
    if RELU:
        x = tl.where(x < 0, 0.0, x)  # NaN stays
    if MASKED:
        x = tl.where(_is_valid(at // CHANNELS, live, valid_ptr, height, width), x, 0.0)
    tl.store(x_ptr + at, x.to(x_ptr.dtype.element_ty), mask=live)


@torch.library.custom_op("detr_batch::finish_", mutates_args=("x",))
def finish_(
    x: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, valid: Tensor | None
) -> None:
    """x += bias + residual, then its ReLU, then 0 beyond what is valid.

    `x` (B, C, H, W), `residual` alike, `bias` (C,).
    """
    rows = channels_last(x)
    with torch.cuda.device_of(x):
        finish_forward[(triton.cdiv(rows.numel(), BLOCK),)](
            rows,
            bias,
            rows if residual is None else channels_last(residual),
            bias if valid is None else valid,
            rows.numel(),
            rows.shape[1],
            rows.shape[2],
            CHANNELS=rows.shape[3],
            RESIDUAL=residual is not None,
            RELU=relu,
            MASKED=valid is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) as the (B, H, W, C) that it is in memory. ValueError where it is not."""
    rows = x.permute(0, 2, 3, 1)
    if not rows.is_contiguous():
        raise ValueError(f"channels are not last in memory: {tuple(x.shape)}, {x.stride()}")
    return rows


@triton.jit(do_not_specialize=["cells", "height", "width", "height_2", "width_2"])  # type: ignore[untyped-decorator]
def finish_pool_forward(  # type: ignore[no-untyped-def]
    x_ptr,  # (B, H, W, C)
    bias_ptr,  # (C,)
    valid_ptr,  # (B, 2) int64
    out_ptr,  # (B, H2, W2, C)
    cells,  # B * H2 * W2
    height,
    width,
    height_2,
    width_2,
    CHANNELS: tl.constexpr,  # a power of two
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = cell < cells
    channel = tl.arange(0, CHANNELS)
    line, column = cell // width_2, cell % width_2 * 2
    image = line // height_2
    line = line % height_2 * 2
    bottom, right = height, width
    if MASKED:
        bottom = tl.load(valid_ptr + image * 2, mask=live, other=0).to(tl.int32)
        right = tl.load(valid_ptr + image * 2 + 1, mask=live, other=0).to(tl.int32)
    plane = x_ptr + image.to(tl.int64) * (height * width * CHANNELS)
    largest = tl.full((BLOCK, CHANNELS), float("-inf"), tl.float32)
    for neighbour in tl.static_range(9):
        y, x = line + neighbour // 3 - 1, column + neighbour % 3 - 1
        inside = live & (y >= 0) & (y < bottom) & (x >= 0) & (x < right)
        at = (y * width + x) * CHANNELS
        loaded = tl.load(
            plane[:, None] + (at[:, None] + channel[None, :]),
            mask=inside[:, None],
            other=float("-inf"),
        )
        largest = tl.maximum(largest, loaded.to(tl.float32), tl.PropagateNan.ALL)
    largest += tl.load(bias_ptr + channel).to(tl.float32)[None, :]
    largest = tl.where(largest < 0, 0.0, largest)
    out = out_ptr + cell.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    tl.store(out, largest.to(out_ptr.dtype.element_ty), mask=live[:, None])


@torch.library.custom_op("detr_batch::finish_pool", mutates_args=())
def finish_pool(x: Tensor, bias: Tensor, valid: Tensor | None) -> Tensor:
    """The 3x3 max-pool of stride 2 of relu(x + bias), whose padding counts as 0.

    `x` (B, C, H, W), C a power of two -> (B, C, (H + 1) // 2, (W + 1) // 2).
    """
    rows = channels_last(x)
    batch, height, width, channels = rows.shape
    out = rows.new_empty(batch, (height + 1) // 2, (width + 1) // 2, channels)
    cells = out.numel() // channels
    with torch.cuda.device_of(x):
        finish_pool_forward[(triton.cdiv(cells, POOLED),)](
            rows,
            bias,
            bias if valid is None else valid,
            out,
            cells,
            height,
            width,
            out.shape[1],
            out.shape[2],
            CHANNELS=channels,
            MASKED=valid is not None,
            BLOCK=POOLED,
            num_warps=POOL_WARPS,
        )
    return out.permute(0, 3, 1, 2)


@finish_pool.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, (height + 1) // 2, (width + 1) // 2, channels)
    return out.permute(0, 3, 1, 2)


@triton.jit(do_not_specialize=["count", "length", "entries"])  # type: ignore[untyped-decorator]
def add_norm_forward(  # type: ignore[no-untyped-def]
    x_ptr,  # (N, C)
    residual_ptr,  # (N, C)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    table_ptr,  # (B, E, C / 2) fp32, positions of lines and of columns
    entries_ptr,  # (S, 2) int32, the rows of the table for each cell
    out_ptr,  # (N, C)
    placed_ptr,  # (N, C)
    narrow_ptr,  # (N, C) int8
    scale_ptr,  # (N,) fp32, of what is int8
    count,  # N = B * S
    length,  # S
    entries,  # E
    eps,
    CHANNELS: tl.constexpr,
    CHANNELS_2: tl.constexpr,  # the next power of two
    PLACED: tl.constexpr,
    NARROW: tl.constexpr,
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
    if NARROW:
        narrow, scale = narrow_rows(tl.where(live, normal, 0.0))
        tl.store(narrow_ptr + at, narrow.to(tl.int8), mask=live)
        tl.store(scale_ptr + row, scale, mask=row < count)
    if PLACED:
        HALF: tl.constexpr = CHANNELS // 2
        entry = entries_ptr + row % length * 2
        line = tl.load(entry, mask=row < count, other=0)
        column = tl.load(entry + 1, mask=row < count, other=0)
        chosen = tl.where(channel[None, :] < HALF, line[:, None], column[:, None])
        chosen += (row // length * entries)[:, None]
        normal += tl.load(
            table_ptr + chosen * HALF + (channel % HALF)[None, :], mask=live, other=0.0
        )
        tl.store(placed_ptr + at, normal.to(out_ptr.dtype.element_ty), mask=live)


def _add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    positions: tuple[Tensor, Tensor] | None = None,
    narrow: bool = False,
) -> list[Tensor]:
    """The norm, then it placed, or as int8 and its scales, where these are wanted."""
    x, residual = x.contiguous(), residual.contiguous()
    channels = x.shape[-1]
    count = x.numel() // channels
    outputs = [torch.empty_like(x) for _ in range(1 if positions is None else 2)]
    if narrow:
        outputs += [torch.empty_like(x, dtype=torch.int8), x.new_empty(count, dtype=torch.float32)]
    table, entries = positions or (weight[None], weight)  # or what is not read
    with torch.cuda.device_of(x):
        add_norm_forward[(triton.cdiv(count, ROWS),)](
            x,
            residual,
            weight,
            bias,
            table,
            entries,
            outputs[0],
            outputs[1 if positions else 0],
            outputs[-2 if narrow else 0],
            outputs[-1],
            count,
            len(entries),
            table.shape[1],
            eps,
            CHANNELS=channels,
            CHANNELS_2=triton.next_power_of_2(channels),
            PLACED=positions is not None,
            NARROW=narrow,
            ROWS=ROWS,
            num_warps=ROW_WARPS,
        )
    return outputs


@torch.library.custom_op("detr_batch::add_norm", mutates_args=())
def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The layer norm of `x` (..., C) plus `residual`, alike."""
    return _add_norm(x, residual, weight, bias, eps)[0]


@add_norm.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("detr_batch::add_norm_place", mutates_args=())
def add_norm_place(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    table: Tensor,
    entries: Tensor,
) -> tuple[Tensor, Tensor]:
    """`add_norm` of (B, S, C), and that plus the positions, see `SeparablePositions`."""
    out, placed = _add_norm(x, residual, weight, bias, eps, (table, entries))
    return out, placed


@add_norm_place.register_fake
def _(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, torch.empty_like(out)


@torch.library.custom_op("detr_batch::add_norm_narrow", mutates_args=())
def add_norm_narrow(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`add_norm`, and that as int8 (..., C) with a scale (..., 1) for each row, see narrow.py."""
    out, numbers, scales = _add_norm(x, residual, weight, bias, eps, narrow=True)
    return out, numbers, scales.view(*x.shape[:-1], 1)


@add_norm_narrow.register_fake
def _(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    scales = x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    return out, torch.empty_like(out, dtype=torch.int8), scales


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator]
def normalize_forward(  # type: ignore[no-untyped-def]
    pixels_ptr,  # (B, H, W, 3) uint8
    mean_ptr,  # (3,) fp32
    deviation_ptr,  # (3,) fp32
    valid_ptr,  # (B, 2) int64
    out_ptr,  # (B, H, W, 3)
    count,  # B * H * W * 3
    height,
    width,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < count
    channel = at % 3
    x = tl.load(pixels_ptr + at, mask=live, other=0).to(tl.float32)
    x = (x - tl.load(mean_ptr + channel)) / tl.load(deviation_ptr + channel)
    if MASKED:
        x = tl.where(_is_valid(at // 3, live, valid_ptr, height, width), x, 0.0)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=live)


@torch.library.custom_op("detr_batch::normalize_pixels", mutates_args=())
def normalize_pixels(
    pixels: Tensor, mean: Tensor, deviation: Tensor, valid: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(pixels - mean) / deviation, 0 beyond what is valid: (B, H, W, 3) uint8 -> (B, 3, H, W)."""
    pixels = pixels.contiguous()
    out = torch.empty_like(pixels, dtype=dtype)
    with torch.cuda.device_of(pixels):
        normalize_forward[(triton.cdiv(out.numel(), BLOCK),)](
            pixels,
            mean,
            deviation,
            mean if valid is None else valid,
            out,
            out.numel(),
            pixels.shape[1],
            pixels.shape[2],
            MASKED=valid is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return out.permute(0, 3, 1, 2)


@normalize_pixels.register_fake
def _(pixels: Tensor, mean: Tensor, deviation: Tensor, valid: object, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(pixels, dtype=dtype).permute(0, 3, 1, 2)
