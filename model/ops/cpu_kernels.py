"""Kernels of the op on CPUs, compiled by Numba on first use; no compiler need be installed.

Arguments have no annotations: Numba compiles for the types that it meets.

`forward`, for each (query, head): softmax, cells and bilinear weights of all its samples at once,
in small arrays that stay in the L1 cache, then one weighted sum of the rows that they name. Loops
over samples have no branches, so that they become vector instructions; the sum is spelled out in
LLVM's vectors, which stay in registers. fp32 inside; values, offsets and logits are read as fp32 or
as bf16.

`forward` has no fast-math flags. With them the bits depended on what the compiler could inline: the
process that compiled a kernel got others than those that loaded it from Numba's cache. Where a
multiplication and an addition shall be one instruction, `_fma` says so.
"""

from math import floor

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

_BITS, _INDEX, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1), np.float32(0)
_LOG2_E = np.float32(1.4426950408889634)
_LOWEST_EXPONENT = np.float32(-126)
_BLOCK = 64  # queries that share their small arrays


@intrinsic
def _as_float(context, number):
    """fp32 as it is; bf16, which NumPy lacks, from its bits as uint16."""

    def generate(_context, builder, signature, arguments):
        if signature.args[0] != types.uint16:
            return arguments[0]
        wide = builder.shl(builder.zext(arguments[0], _BITS), ir.Constant(_BITS, 16))
        return builder.bitcast(wide, _FLOAT)

    return types.float32(number), generate


@intrinsic
def _float_of_bits(context, bits):
    def generate(_context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), generate


@intrinsic
def _fma(context, a, b, c):
    """a * b + c in fp32, rounded once."""

    def generate(_context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


def _weighted_sum_of(width):
    """A function that sums weighted vectors of `width` numbers; the sums never leave registers."""
    vector = ir.VectorType(_FLOAT, width)
    bits = ir.VectorType(_BITS, width)

    def load(builder, pointer, bf16):
        if not bf16:
            return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)
        short = ir.VectorType(ir.IntType(16), width)
        loaded = builder.load(builder.bitcast(pointer, short.as_pointer()), align=2)
        wide = builder.shl(builder.zext(loaded, bits), ir.Constant(bits, [16] * width))
        return builder.bitcast(wide, vector)

    def store(builder, total, pointer, bf16):
        """Rounds to nearest, ties to even."""
        if not bf16:
            builder.store(total, builder.bitcast(pointer, vector.as_pointer()), align=4)
            return
        sixteen = ir.Constant(bits, [16] * width)
        whole = builder.bitcast(total, bits)
        odd = builder.and_(builder.lshr(whole, sixteen), ir.Constant(bits, [1] * width))
        rounded = builder.add(builder.add(whole, ir.Constant(bits, [0x7FFF] * width)), odd)
        short = ir.VectorType(ir.IntType(16), width)
        halves = builder.trunc(builder.lshr(rounded, sixteen), short)
        builder.store(halves, builder.bitcast(pointer, short.as_pointer()), align=2)

    def splat(builder, number):
        empty = ir.Constant(vector, ir.Undefined)
        single = builder.insert_element(empty, number, ir.Constant(_BITS, 0))
        return builder.shuffle_vector(single, empty, ir.Constant(bits, [0] * width))

    @intrinsic
    def weighted_sum(context, table, first, stride, rows, weights, out, at):
        """out[at : at + width] = sum_k weights[k] * table[first + stride * rows[k] :][:width].

        `table` and `out` are flat; there are a multiple of four rows, and four sums under way, so
        that additions do not wait for one another.
        """

        def generate(context, builder, signature, arguments):
            def array(i):
                return cgutils.create_struct_proxy(signature.args[i])(
                    context, builder, arguments[i]
                )

            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{width}f32"
            )
            bf16 = signature.args[0].dtype == types.uint16
            start = builder.gep(array(0).data, [arguments[1]])
            row_numbers, row_weights = array(3), array(4)
            before = builder.block
            loop, done = builder.append_basic_block(), builder.append_basic_block()
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(_INDEX)
            k.add_incoming(ir.Constant(_INDEX, 0), before)
            sums = [builder.phi(vector) for _ in range(4)]
            added = []
            for lane, total in enumerate(sums):
                total.add_incoming(ir.Constant(vector, [0.0] * width), before)
                here = builder.add(k, ir.Constant(_INDEX, lane))
                row = builder.sext(builder.load(builder.gep(row_numbers.data, [here])), _INDEX)
                pointer = builder.gep(start, [builder.mul(row, arguments[2])])
                weight = splat(builder, builder.load(builder.gep(row_weights.data, [here])))
                operands = [load(builder, pointer, bf16), weight, total]
                added.append(builder.call(multiply_add, operands))
            following = builder.add(k, ir.Constant(_INDEX, 4))
            k.add_incoming(following, loop)
            for total, sum_so_far in zip(sums, added, strict=True):
                total.add_incoming(sum_so_far, loop)
            more = builder.icmp_signed("<", following, row_numbers.nitems)
            builder.cbranch(more, loop, done)
            builder.position_at_end(done)
            a, b, c, d = added
            total = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
            store(builder, total, builder.gep(array(5).data, [arguments[6]]), bf16)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(table, i64, i64, rows, weights, out, i64), generate

    return weighted_sum


# 32 and 16 are the channels of a head of the published models and of the packaged one.
_sum_of_32, _sum_of_16, _sum_of_1 = (_weighted_sum_of(width) for width in (32, 16, 1))


@njit(cache=True)
def _power_of_two(x):
    """2 ** x for x in [-126, 0], to 2e-7: a polynomial for the fraction, bits for the rest."""
    whole = np.int32(x - _HALF)
    part = x - np.float32(whole)
    power = np.float32(1.5403530e-4)
    power = _fma(power, part, np.float32(1.3333558e-3))
    power = _fma(power, part, np.float32(9.6181291e-3))
    power = _fma(power, part, np.float32(5.5504109e-2))
    power = _fma(power, part, np.float32(2.4022651e-1))
    power = _fma(power, part, np.float32(6.9314718e-1))
    power = _fma(power, part, _ONE)
    return power * _float_of_bits((whole + np.int32(127)) << np.int32(23))


@njit(cache=True, inline="always")
def _softmax(logits, first, samples, weights):
    """weights[:] = softmax of as many logits from `first` on."""
    top = _as_float(logits[first])
    for k in range(samples):
        logit = _as_float(logits[first + k])
        top = logit if logit > top else top
    total = _ZERO
    for k in range(samples):
        exponent = (_as_float(logits[first + k]) - top) * _LOG2_E
        weights[k] = _power_of_two(exponent if exponent > _LOWEST_EXPONENT else _LOWEST_EXPONENT)
    for k in range(samples):
        total += weights[k]
    share = _ONE / total
    for k in range(samples):
        weights[k] *= share


@njit(cache=True, inline="always")
def _corners(x, y, weight, width, height, start, k, samples, rows, weights):
    """The four rows around (x, y) in a level, and their weights: 0 outside. No branches."""
    inside = (x > -1) & (y > -1) & (x < width) & (y < height)
    x = x if inside else _ZERO
    y = y if inside else _ZERO
    weight = weight if inside else _ZERO
    left, above = np.int32(x + _ONE) - np.int32(1), np.int32(y + _ONE) - np.int32(1)  # floor ...
    left = left if left < width else width - np.int32(1)  # ... where x + 1 was not rounded up
    above = above if above < height else height - np.int32(1)
    right, below = left + np.int32(1), above + np.int32(1)
    to_right, to_below = x - np.float32(left), y - np.float32(above)
    left_weight = _ONE - to_right if left >= 0 else _ZERO
    right_weight = to_right if right < width else _ZERO
    above_weight = weight * (_ONE - to_below) if above >= 0 else _ZERO
    below_weight = weight * to_below if below < height else _ZERO
    left, right = (left if left >= 0 else np.int32(0)), right if right < width else left
    above, below = (above if above >= 0 else np.int32(0)), below if below < height else above
    above, below = above * width + start, below * width + start
    rows[k], weights[k] = above + left, above_weight * left_weight
    rows[samples + k], weights[samples + k] = above + right, above_weight * right_weight
    rows[2 * samples + k], weights[2 * samples + k] = below + left, below_weight * left_weight
    rows[3 * samples + k], weights[3 * samples + k] = below + right, below_weight * right_weight


@njit(parallel=True, cache=True)
def forward(table, offsets, logits, strides, levels, points, bias, reference, ratios, padding, out):
    """Arguments as in `fused_ms_deform_attn`, but `table` is the value, and `levels` (L, 3) has
    height, width and first row. An empty `reference`: offsets are locations, logits weights, and
    there is no bias.

    `table`, `offsets` and `logits` are flat, and `strides` (3, 2) has those of their images and
    rows, so that Numba compiles nothing anew where they are views of a larger tensor.
    """
    batch, queries, heads, channels = out.shape
    image_stride, row_stride = strides[0]
    samples = points * len(levels)
    blocks = (queries + _BLOCK - 1) // _BLOCK
    raw, boxes, padded = reference.size > 0, reference.shape[2] == 4, padding.size > 0
    flat = out.reshape(-1)
    for item in prange(batch * blocks):
        b, begin = item // blocks, item % blocks * _BLOCK
        height, width, start = np.empty((3, samples), np.int32)
        valid_x, valid_y = np.empty((2, samples), np.float32)
        weight = np.empty(samples, np.float32)
        rows, weights = np.empty(4 * samples, np.int32), np.empty(4 * samples, np.float32)
        for k in range(samples):
            height[k], width[k], start[k] = levels[k // points]
            valid_x[k] = width[k] * (ratios[b, k // points, 0] if raw else _ONE)
            valid_y[k] = height[k] * (ratios[b, k // points, 1] if raw else _ONE)
        for q in range(begin, min(begin + _BLOCK, queries)):
            centre_x = reference[b, q, 0] if raw else _ZERO
            centre_y = reference[b, q, 1] if raw else _ZERO
            for m in range(heads):
                first = m * samples
                offset = b * strides[1, 0] + q * strides[1, 1] + 2 * first
                logit = b * strides[2, 0] + q * strides[2, 1] + first
                if raw:
                    _softmax(logits, logit, samples, weight)
                    extent_x = _HALF / np.float32(points) * reference[b, q, 2] if boxes else _ZERO
                    extent_y = _HALF / np.float32(points) * reference[b, q, 3] if boxes else _ZERO
                    for k in range(samples):
                        at = 2 * (first + k)
                        x = _as_float(offsets[offset + 2 * k]) + bias[at]
                        y = _as_float(offsets[offset + 2 * k + 1]) + bias[at + 1]
                        x = x * extent_x * valid_x[k] if boxes else x
                        y = y * extent_y * valid_y[k] if boxes else y
                        x = _fma(centre_x, valid_x[k], x - _HALF)
                        y = _fma(centre_y, valid_y[k], y - _HALF)
                        w, h, s = width[k], height[k], start[k]
                        _corners(x, y, weight[k], w, h, s, k, samples, rows, weights)
                else:
                    for k in range(samples):
                        x = _as_float(offsets[offset + 2 * k]) * valid_x[k] - _HALF
                        y = _as_float(offsets[offset + 2 * k + 1]) * valid_y[k] - _HALF
                        w, h, s = width[k], height[k], start[k]
                        share = _as_float(logits[logit + k])
                        _corners(x, y, share, w, h, s, k, samples, rows, weights)
                if padded:
                    for k in range(4 * samples):
                        weights[k] = _ZERO if padding[b, rows[k]] else weights[k]
                source = b * image_stride + m * channels
                target = ((b * queries + q) * heads + m) * channels
                done = 0
                while channels - done >= 32:
                    _sum_of_32(table, source + done, row_stride, rows, weights, flat, target + done)
                    done += 32
                while channels - done >= 16:
                    _sum_of_16(table, source + done, row_stride, rows, weights, flat, target + done)
                    done += 16
                while done < channels:
                    _sum_of_1(table, source + done, row_stride, rows, weights, flat, target + done)
                    done += 1


@njit(parallel=True, fastmath=True, cache=True)
def backward(
    value, shapes, starts, locations, weights, grad, grad_value, grad_locations, grad_weights
):
    """Adds to `grad_value` (B, S, M, D); writes the others, but not where a point is outside.

    Formulas: model/ops/README.md.
    """
    batch, queries, heads, levels, points = weights.shape
    channels = value.shape[3]
    for item in prange(batch * heads):  # one owner for each (image, head) of grad_value
        b, m = item // heads, item % heads
        for q in range(queries):
            for level in range(levels):
                height, width = shapes[level, 0], shapes[level, 1]
                for p in range(points):
                    x = locations[b, q, m, level, p, 0] * width - np.float32(0.5)
                    y = locations[b, q, m, level, p, 1] * height - np.float32(0.5)
                    if not (x > -1 and y > -1 and x < width and y < height):
                        continue
                    left, top = floor(x), floor(y)
                    fx, fy = x - np.float32(left), y - np.float32(top)
                    weight = weights[b, q, m, level, p]
                    sampled = slope_x = slope_y = np.float32(0)
                    for dy in range(2):
                        row = top + dy
                        if row < 0 or row >= height:
                            continue
                        wy = fy if dy else np.float32(1) - fy
                        for dx in range(2):
                            column = left + dx
                            if column < 0 or column >= width:
                                continue
                            wx = fx if dx else np.float32(1) - fx
                            source = starts[level] + row * width + column
                            share = weight * wy * wx
                            dot = np.float32(0)
                            for d in range(channels):
                                dot += grad[b, q, m, d] * value[b, source, m, d]
                                grad_value[b, source, m, d] += share * grad[b, q, m, d]
                            sampled += wy * wx * dot
                            slope_x += wy * dot if dx else -wy * dot
                            slope_y += wx * dot if dy else -wx * dot
                    grad_weights[b, q, m, level, p] = sampled
                    grad_locations[b, q, m, level, p, 0] = weight * width * slope_x
                    grad_locations[b, q, m, level, p, 1] = weight * height * slope_y
