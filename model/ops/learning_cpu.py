"""The op on CPUs with gradients: the fused forward, and a backward pass compiled by Numba.

Gradients: model/ops/README.md.
"""

from collections.abc import Sequence
from math import floor
from typing import Any

import numpy as np
import torch
from numba import njit, prange, set_num_threads
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.ops.fused_cpu import THREADS, fused_ms_deform_attn_cpu

Levels = Sequence[tuple[int, int]]


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
    def forward(ctx, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(value, locations, weights)
        ctx.levels = levels
        said = locations.flatten(2), weights.flatten(2)
        return fused_ms_deform_attn_cpu(value, levels, *said, None, None, None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        value, locations, weights = ctx.saved_tensors
        shapes = torch.tensor(ctx.levels, dtype=torch.int64)
        areas = shapes.prod(1)
        grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
        grad = grad.reshape(*weights.shape[:3], value.shape[3]).contiguous()
        inputs = _arrays(value, shapes, areas.cumsum(0) - areas, locations, weights, grad)
        set_num_threads(min(torch.get_num_threads(), THREADS))
        _backward(*inputs, *_arrays(*grads))
        return grads[0], None, grads[1], grads[2]


def ms_deform_attn_fused_cpu(
    value: Tensor,
    spatial_shapes: Levels,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Shapes as in `model.ops.ms_deform_attn`; fp32 inside."""
    tensors = (value, sampling_locations, attention_weights)
    floats = [tensor.float().contiguous() for tensor in tensors]
    out: Tensor = _FusedMSDeformAttn.apply(floats[0], spatial_shapes, floats[1], floats[2])
    return out.to(value.dtype)
