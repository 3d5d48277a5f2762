"""From the projected features to the encoder's input on GPUs: group norm, positions, one sequence.

Statistics are those of an image's own valid area, in fp32. They are computed in two steps without
atomics, so that equal images have equal bits. The position of a cell is the sum of a row of a small
table for its line and of one for its column: the tables stay in the cache, and no position of (B,
S, C) is ever written.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CELLS, WARPS = 64, 8  # of one program that computes statistics
PLACED, PLACE_WARPS = 16, 4  # cells of one program that writes the sequence
CHUNK, COMBINE_WARPS = 64, 4  # programs whose statistics are combined at once
LINES, LINE_WARPS = 8, 4  # rows of the table of positions
Shapes = tuple[tuple[int, int], ...]


@triton.jit  # type: ignore[untyped-decorator]
def _place(  # type: ignore[no-untyped-def]
    levels_ptr, areas_ptr, level, image, LEVELS: tl.constexpr, CELLS: tl.constexpr
):
    """The cells of this program: the first row of the level, their numbers, lines and columns,
    whether they exist, whether they are valid, and the valid height and width at the level.
    """
    height = tl.load(levels_ptr + level * 3)
    width = tl.load(levels_ptr + level * 3 + 1)
    start = tl.load(levels_ptr + level * 3 + 2)
    area = areas_ptr + (image * LEVELS + level) * 2
    rows, columns = tl.load(area).to(tl.int32), tl.load(area + 1).to(tl.int32)
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    line, column = cell // width, cell % width
    exists = cell < height * width
    return start, cell, line, column, exists, (line < rows) & (column < columns), rows, columns


@triton.jit(do_not_specialize=["length"])  # type: ignore[untyped-decorator]
def statistics_forward(  # type: ignore[no-untyped-def]
    raw_ptr,  # (B, S, C)
    bias_ptr,  # (L, C) fp32
    levels_ptr,  # (L, 3) int32: height, width, first row
    areas_ptr,  # (B, L, 2) int64: valid height and width
    counts_ptr,  # (B, L, N) fp32: valid numbers of a group
    means_ptr,  # (B, L, N, G) fp32
    squares_ptr,  # (B, L, N, G) fp32: sums of squared differences from the mean
    length,  # S
    LEVELS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,  # channels of a group
    WIDTH_2: tl.constexpr,  # the next power of two
    CELLS: tl.constexpr,
):
    level, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start, cell, _, _, exists, valid, _, _ = _place(
        levels_ptr, areas_ptr, level, image, LEVELS, CELLS
    )
    live = exists & valid
    part = (image * LEVELS + level) * tl.num_programs(0) + tl.program_id(0)
    group, member = tl.arange(0, GROUPS), tl.arange(0, WIDTH_2)
    channel = group[:, None] * WIDTH + member[None, :]
    present = member < WIDTH
    row = image * length + start + cell
    at = row[:, None, None] * (GROUPS * WIDTH) + channel[None, :, :]
    mask = live[:, None, None] & present[None, None, :]
    x = tl.load(raw_ptr + at, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + level * (GROUPS * WIDTH) + channel, mask=present[None, :], other=0.0)
    x = tl.where(mask, x + bias[None, :, :], 0.0)
    count = tl.sum(live.to(tl.float32), axis=0) * WIDTH
    mean = tl.sum(tl.sum(x, axis=2), axis=0) / tl.maximum(count, 1.0)
    centred = tl.where(mask, x - mean[None, :, None], 0.0)
    squares = tl.sum(tl.sum(centred * centred, axis=2), axis=0)
    tl.store(counts_ptr + part, count)
    tl.store(means_ptr + part * GROUPS + group, mean)
    tl.store(squares_ptr + part * GROUPS + group, squares)


@triton.jit  # type: ignore[untyped-decorator]
def _chunk(  # type: ignore[no-untyped-def]
    counts_ptr, means_ptr, item, first, parts, GROUPS: tl.constexpr, CHUNK: tl.constexpr
):
    """Counts (CHUNK,) and means (CHUNK, GROUPS) of programs from `first` on, and where these lie.

    Beyond the last program they are 0.
    """
    part = first + tl.arange(0, CHUNK)
    live = part < parts
    at = (item * parts + part)[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    count = tl.load(counts_ptr + item * parts + part, mask=live, other=0.0)
    return count, tl.load(means_ptr + at, mask=live[:, None], other=0.0), at


@triton.jit(do_not_specialize=["parts"])  # type: ignore[untyped-decorator]
def combine_forward(  # type: ignore[no-untyped-def]
    counts_ptr,  # (B, L, N) fp32
    means_ptr,  # (B, L, N, G) fp32
    squares_ptr,  # (B, L, N, G) fp32
    moments_ptr,  # (B, L, 2, G) fp32: mean, and 1 / standard deviation
    parts,  # N
    eps,
    GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)
    total = tl.zeros((CHUNK,), tl.float32)
    summed = tl.zeros((CHUNK, GROUPS), tl.float32)
    for first in range(0, parts, CHUNK):
        count, means, _ = _chunk(counts_ptr, means_ptr, item, first, parts, GROUPS, CHUNK)
        total += count
        summed += count[:, None] * means
    numbers = tl.sum(total, axis=0)
    mean = tl.sum(summed, axis=0) / numbers
    squares = tl.zeros((CHUNK, GROUPS), tl.float32)
    for first in range(0, parts, CHUNK):
        count, means, at = _chunk(counts_ptr, means_ptr, item, first, parts, GROUPS, CHUNK)
        off = tl.where(count[:, None] > 0, means - mean[None, :], 0.0)
        squares += tl.load(squares_ptr + at, mask=count[:, None] > 0, other=0.0)
        squares += count[:, None] * off * off
    variance = tl.sum(squares, axis=0) / numbers
    tl.store(moments_ptr + item * (2 * GROUPS) + group, mean)
    tl.store(moments_ptr + item * (2 * GROUPS) + GROUPS + group, 1.0 / tl.sqrt(variance + eps))


@triton.jit(do_not_specialize=["length", "entries"])  # type: ignore[untyped-decorator]
def place_forward(  # type: ignore[no-untyped-def]
    raw_ptr,  # (B, S, C)
    bias_ptr,  # (L, C) fp32, of the projection
    moments_ptr,  # (B, L, 2, G) fp32
    weight_ptr,  # (L, C) fp32, of the norm
    shift_ptr,  # (L, C) fp32, of the norm
    table_ptr,  # (B, E, C / 2) fp32
    entries_ptr,  # (S, 2) int32: the rows of the table for the line and the column of a cell
    levels_ptr,  # (L, 3) int32
    areas_ptr,  # (B, L, 2) int64
    memory_ptr,  # (B, S, C)
    placed_ptr,  # (B, S, C)
    centres_ptr,  # (B, S, 2) fp32
    length,  # S
    entries,  # E
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_2: tl.constexpr,  # the next power of two
    GROUPS: tl.constexpr,
    CELLS: tl.constexpr,
):
    level, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start, cell, line, column, exists, valid, rows, columns = _place(
        levels_ptr, areas_ptr, level, image, LEVELS, CELLS
    )
    channel = tl.arange(0, CHANNELS_2)
    present = channel < CHANNELS
    row = image * length + start + cell
    at = row[:, None] * CHANNELS + channel[None, :]
    live = exists[:, None] & present[None, :]
    loaded = live & valid[:, None]
    x = tl.load(raw_ptr + at, mask=loaded, other=0.0).to(tl.float32)
    own = level * CHANNELS + channel
    x += tl.load(bias_ptr + own, mask=present, other=0.0)[None, :]
    group = channel // (CHANNELS // GROUPS)
    moments = moments_ptr + (image * LEVELS + level) * (2 * GROUPS) + group
    mean = tl.load(moments, mask=present, other=0.0)
    scale = tl.load(moments + GROUPS, mask=present, other=0.0)
    x = (x - mean[None, :]) * scale[None, :]
    x = x * tl.load(weight_ptr + own, mask=present, other=0.0)[None, :]
    x += tl.load(shift_ptr + own, mask=present, other=0.0)[None, :]
    x = tl.where(loaded, x, 0.0)
    tl.store(memory_ptr + at, x.to(memory_ptr.dtype.element_ty), mask=live)
    HALF: tl.constexpr = CHANNELS // 2
    entry = entries_ptr + (start + cell) * 2
    entry_of_line = tl.load(entry, mask=exists, other=0)
    entry_of_column = tl.load(entry + 1, mask=exists, other=0)
    chosen = tl.where(channel[None, :] < HALF, entry_of_line[:, None], entry_of_column[:, None])
    where = (image * entries + chosen) * HALF + (channel % HALF)[None, :]
    x += tl.load(table_ptr + where, mask=live, other=0.0)
    tl.store(placed_ptr + at, x.to(placed_ptr.dtype.element_ty), mask=live)
    centre = centres_ptr + row * 2
    tl.store(centre, (column + 0.5) / columns, mask=exists)
    tl.store(centre + 1, (line + 0.5) / rows, mask=exists)


@triton.jit(do_not_specialize=["entries"])  # type: ignore[untyped-decorator]
def position_forward(  # type: ignore[no-untyped-def]
    lines_ptr,  # (E, 3) int32: level, axis (0: y, 1: x), line or column
    frequencies_ptr,  # (C / 2,) fp32
    levels_ptr,  # (L, C) fp32, the embedding of the levels
    areas_ptr,  # (B, L, 2) int64
    table_ptr,  # (B, E, C / 2) fp32
    entries,  # E
    LEVELS: tl.constexpr,
    HALF: tl.constexpr,  # C / 2
    HALF_2: tl.constexpr,  # the next power of two
    LINES: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    entry = tl.program_id(0) * LINES + tl.arange(0, LINES)
    channel = tl.arange(0, HALF_2)
    exists, present = entry < entries, channel < HALF
    level = tl.load(lines_ptr + entry * 3, mask=exists, other=0)
    axis = tl.load(lines_ptr + entry * 3 + 1, mask=exists, other=0)
    number = tl.load(lines_ptr + entry * 3 + 2, mask=exists, other=0)
    extent = tl.load(areas_ptr + (image * LEVELS + level) * 2 + axis, mask=exists, other=1)
    share = (number + 0.5) / (extent.to(tl.float32) + 1e-6)
    angle = (share * 6.283185307179586)[:, None]
    angle = angle / tl.load(frequencies_ptr + channel, mask=present, other=1.0)[None, :]
    sines = tl.where((channel % 2 == 0)[None, :], tl.sin(angle), tl.cos(angle))
    live = exists[:, None] & present[None, :]
    embedding = (level * 2 + axis)[:, None] * HALF + channel[None, :]
    sines += tl.load(levels_ptr + embedding, mask=live, other=0.0)
    at = (image * entries + entry)[:, None] * HALF + channel[None, :]
    tl.store(table_ptr + at, sines, mask=live)


@torch.library.custom_op("detr_batch::norm_place", mutates_args=())
def norm_place(
    raw: Tensor,
    bias: Tensor,
    weight: Tensor,
    shift: Tensor,
    groups: int,
    eps: float,
    levels: Tensor,
    largest: int,
    areas: Tensor,
    table: Tensor,
    entries: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The group norm of each level within its valid area, its sum with positions, and centres.

    Args:
        raw: (B, S, C), the products of the projections without their bias.
        bias, weight, shift: (L, C) fp32, the bias of each projection, and each norm's parameters.
        groups: G, a power of two that divides C.
        eps: added to the variance.
        levels: (L, 3) int32, height, width and first row of each level.
        largest: the number of cells of the largest level.
        areas: (B, L, 2) int64, valid height and width, at least 1 x 1.
        table, entries: see `SeparablePositions`.

    Returns:
        memory (B, S, C) of the `dtype`, which is 0 beyond the valid area; memory plus
        positions (B, S, C); centres of the cells (B, S, 2) fp32, see `FeatureLevels`.
    """
    batch, length, channels = raw.shape
    count = len(levels)
    memory, placed = (torch.empty_like(raw, dtype=dtype) for _ in range(2))
    centres = raw.new_empty(batch, length, 2, dtype=torch.float32)
    parts = triton.cdiv(largest, CELLS)  # of smaller levels some programs have nothing to do
    counts = raw.new_empty(batch, count, parts, dtype=torch.float32)
    means = raw.new_empty(batch, count, parts, groups, dtype=torch.float32)
    squares = torch.empty_like(means)
    moments = raw.new_empty(batch, count, 2, groups, dtype=torch.float32)
    width = channels // groups
    common = {"LEVELS": count, "GROUPS": groups}
    with torch.cuda.device_of(raw):
        statistics_forward[(parts, count, batch)](
            raw,
            bias,
            levels,
            areas,
            counts,
            means,
            squares,
            length,
            WIDTH=width,
            WIDTH_2=triton.next_power_of_2(width),
            CELLS=CELLS,
            num_warps=WARPS,
            **common,
        )
        combine_forward[(batch * count,)](
            counts,
            means,
            squares,
            moments,
            parts,
            eps,
            GROUPS=groups,
            CHUNK=CHUNK,
            num_warps=COMBINE_WARPS,
        )
        place_forward[(triton.cdiv(largest, PLACED), count, batch)](
            raw,
            bias,
            moments,
            weight,
            shift,
            table,
            entries,
            levels,
            areas,
            memory,
            placed,
            centres,
            length,
            table.shape[1],
            CHANNELS=channels,
            CHANNELS_2=triton.next_power_of_2(channels),
            CELLS=PLACED,
            num_warps=PLACE_WARPS,
            **common,
        )
    return memory, placed, centres


@norm_place.register_fake
def _(raw: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    memory, placed = (torch.empty_like(raw, dtype=others[-1]) for _ in range(2))
    return memory, placed, raw.new_empty(*raw.shape[:2], 2, dtype=torch.float32)


@torch.library.custom_op("detr_batch::position_table", mutates_args=())
def position_table(lines: Tensor, frequency: Tensor, embedding: Tensor, areas: Tensor) -> Tensor:
    """`SeparablePositions.table` (B, E, C / 2) fp32: sines of lines and columns, plus embeddings.

    `lines` (E, 3) int32 as `lines_on` gives them, `frequency` (C / 2,) fp32, `embedding` (L, C)
    fp32 of the levels, `areas` (B, L, 2) int64.
    """
    batch, count = areas.shape[:2]
    half = len(frequency)
    table = embedding.new_empty(batch, len(lines), half)
    with torch.cuda.device_of(table):
        position_forward[(triton.cdiv(len(lines), LINES), batch)](
            lines,
            frequency,
            embedding,
            areas,
            table,
            len(lines),
            LEVELS=count,
            HALF=half,
            HALF_2=triton.next_power_of_2(half),
            LINES=LINES,
            num_warps=LINE_WARPS,
        )
    return table


@position_table.register_fake
def _(lines: Tensor, frequency: Tensor, embedding: Tensor, areas: Tensor) -> Tensor:
    return embedding.new_empty(len(areas), len(lines), len(frequency))


@cache  # as `levels_on`: 12 bytes a line and column
def lines_on(device: torch.device, shapes: Shapes) -> Tensor:
    """(E, 3) int32 on the device: level, axis (0 is y) and number of each line and column."""
    rows = [
        (level, axis, number)
        for level, shape in enumerate(shapes)
        for axis, extent in enumerate(shape)
        for number in range(extent)
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device)


@cache  # as `levels_on`: 8 bytes a cell
def entries_on(device: torch.device, shapes: Shapes) -> Tensor:
    """`SeparablePositions.entries` (S, 2) int32 on the device, for the rows of `lines_on`."""
    cells, first = [], 0
    for height, width in shapes:
        line = torch.arange(height)[:, None].expand(-1, width) + first
        column = torch.arange(width)[None].expand(height, -1) + (first + height)
        cells.append(torch.stack((line, column), dim=-1).flatten(0, 1))
        first += height + width
    return torch.cat(cells).to(device, torch.int32)
