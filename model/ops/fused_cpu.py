"""Forward and backward of the op in one pass each, compiled by Numba on first use.

Nothing is materialised between the sampling locations and the sum: each (image, query, head) reads
its corners and adds them up in registers. Gradients: model/ops/README.md.
"""

from collections.abc import Sequence
from math import floor
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable


@njit(parallel=True, fastmath=True, cache=True)
def _forward(value, shapes, starts, locations, weights, out):  # type: ignore[no-untyped-def]
    batch, queries, heads, levels, points = weights.shape
    channels = value.shape[3]
    for item in prange(batch * queries):
        b, q = item // queries, item % queries
        for m in range(heads):
            for level in range(levels):
                height, width = shapes[level, 0], shapes[level, 1]
                for p in range(points):
                    x = locations[b, q, m, level, p, 0] * width - np.float32(0.5)
                    y = locations[b, q, m, level, p, 1] * height - np.float32(0.5)
                    if not (x > -1 and y > -1 and x < width and y < height):
                        continue
                    left, top = floor(x), floor(y)
                    fx, fy = x - np.float32(left), y - np.float32(top)
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
                            share = weights[b, q, m, level, p] * wy * wx
                            source = starts[level] + row * width + column
                            for d in range(channels):
                                out[b, q, m, d] += share * value[b, source, m, d]


@njit(parallel=True, fastmath=True, cache=True)
def _backward(  # type: ignore[no-untyped-def]
    value, shapes, starts, locations, weights, grad, grad_value, grad_locations, grad_weights
):
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


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]


class _FusedMSDeformAttn(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        out = value.new_zeros(*weights.shape[:3], value.shape[3])
        _forward(*_arrays(value, shapes, starts, locations, weights, out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        value, shapes, starts, locations, weights = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
        inputs = _arrays(value, shapes, starts, locations, weights, grad.contiguous())
        _backward(*inputs, *_arrays(*grads))
        return grads[0], None, None, grads[1], grads[2]


def ms_deform_attn_fused_cpu(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Shapes as in `model.ops.ms_deform_attn`; fp32 inside. ValueError for tensors off the CPU."""
    if value.device.type != "cpu":
        raise ValueError(f"implementation='fused_cpu' needs CPU tensors, not {value.device}")
    shapes = torch.tensor(spatial_shapes, dtype=torch.int64)
    areas = shapes.prod(1)
    floats = [t.float().contiguous() for t in (value, sampling_locations, attention_weights)]
    out: Tensor = _FusedMSDeformAttn.apply(
        floats[0], shapes, areas.cumsum(0) - areas, floats[1], floats[2]
    )
    return out.flatten(2).to(value.dtype)
