"""The op on CPUs: what its kernels (cpu_kernels.py) read and write, and its gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import config, set_num_threads
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.ops.cpu_kernels import backward, forward
from model.ops.sampling import level_rows

Levels = Sequence[tuple[int, int]]


def _use_threads_of_torch() -> None:
    """Let Numba compute with as many threads as torch does in this thread."""
    most: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    set_num_threads(min(threads, most))
    if torch.get_num_threads() != threads:  # Numba started its threads, and changed torch's number
        torch.set_num_threads(threads)


def _readable(tensor: Tensor) -> Any:
    """As an array of fp32, or of the bits of bf16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.uint16).numpy()
    return tensor.detach().float().contiguous().numpy()


def _in_rows(tensor: Tensor) -> Tensor:
    """(B, N, ...) of a dtype that the kernels read, with each row (...) contiguous."""
    if tensor.dtype in (torch.float32, torch.bfloat16) and tensor[0, 0].is_contiguous():
        return tensor
    return tensor.float().contiguous()


def _flat(tensor: Tensor) -> tuple[Any, tuple[int, int]]:
    """All that (B, N, ...) spans, as one array, and the strides of its images and its rows."""
    ends = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    span = tensor.as_strided((sum(ends) + 1,), (1,), tensor.storage_offset())
    return _readable(span), (tensor.stride(0), tensor.stride(1))


_NOTHING = np.empty((0, 0), np.bool_)
_NO_REFERENCE = np.empty((0, 0, 0), np.float32)


def fused_ms_deform_attn_cpu(
    value: Tensor,
    spatial_shapes: Levels,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    reference_points: Tensor | None,
    valid_ratios: Tensor | None,
    padding_mask: Tensor | None,
    offset_bias: Tensor | None,
) -> Tensor:
    """Shapes as in `model.ops.fused_ms_deform_attn`; without gradients.

    Without `reference_points` the offsets are locations, and the logits weights.
    """
    batch, _, heads, channels = value.shape
    dtype = value.dtype
    value = _in_rows(value)
    table, table_strides = _flat(value)
    offsets, offset_strides = _flat(_in_rows(sampling_offsets))
    logits, logit_strides = _flat(_in_rows(attention_logits))
    if offset_bias is None:
        offset_bias = torch.zeros(sampling_offsets.shape[2])
    out = torch.empty(batch, sampling_offsets.shape[1], heads, channels, dtype=value.dtype)
    _use_threads_of_torch()
    forward(
        table,
        offsets,
        logits,
        np.array([table_strides, offset_strides, logit_strides], np.int64),
        np.array(level_rows(spatial_shapes), np.int32),
        attention_logits.shape[2] // (heads * len(spatial_shapes)),
        _readable(offset_bias.float()),
        _NO_REFERENCE if reference_points is None else _readable(reference_points.float()),
        _NO_REFERENCE if valid_ratios is None else _readable(valid_ratios.float()),
        _NOTHING if padding_mask is None else padding_mask.contiguous().numpy(),
        _readable(out),
    )
    return out.flatten(2).to(dtype)


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]


class _FusedMSDeformAttn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(value, locations, weights)
        ctx.levels = levels
        said = locations.flatten(2), weights.flatten(2)
        return fused_ms_deform_attn_cpu(value, levels, *said, None, None, None, None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        value, locations, weights = ctx.saved_tensors
        shapes = torch.tensor(ctx.levels, dtype=torch.int64)
        areas = shapes.prod(1)
        grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
        grad = grad.reshape(*weights.shape[:3], value.shape[3]).contiguous()
        inputs = _arrays(value, shapes, areas.cumsum(0) - areas, locations, weights, grad)
        _use_threads_of_torch()
        backward(*inputs, *_arrays(*grads))
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
