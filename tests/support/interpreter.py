"""Triton's interpreter, made to compute in bf16 as GPUs do.

It keeps bf16 as integers: it truncates to them, and its fma and its product multiply the integers.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from triton import knobs
from triton.language import bfloat16, float32
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def round_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what the interpreter does in bf16. Nothing changes where kernels are compiled."""
    if not knobs.runtime.interpret:
        return
    cast, fma, dot = (
        getattr(InterpreterBuilder, name) for name in ("cast_impl", "create_fma", "create_dot")
    )

    def rounded_cast(self: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) != (float32, bfloat16):
            return cast(self, source, kind)
        return _narrow(torch.from_numpy(source.data))

    def wide_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.dtype.scalar != bfloat16:
            return fma(self, x, y, z)
        wide = [_widen(each).double() for each in (x, y, z)]
        return _narrow(wide[0] * wide[1] + wide[2])

    def wide_dot(self: Any, x: Any, y: Any, *rest: Any) -> Any:
        if x.dtype.scalar == bfloat16:
            x, y = (TensorHandle(_widen(each).numpy(), float32) for each in (x, y))
        return dot(self, x, y, *rest)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounded_cast)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", rounded_cast)
    monkeypatch.setattr(InterpreterBuilder, "create_fma", wide_fma)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", wide_dot)


def _widen(handle: Any) -> Tensor:
    return torch.tensor(handle.data).view(torch.bfloat16).float()


def _narrow(numbers: Tensor) -> Any:
    return TensorHandle(numbers.to(torch.bfloat16).view(torch.uint16).numpy(), bfloat16)
