"""The device's limits: every later figure is also reported as a share of these."""

from collections.abc import Callable
from functools import partial

import torch

from jobs.bench.gpu.clocks import read_clocks
from jobs.bench.gpu.context import Absent, Context
from jobs.bench.gpu.journal import VALUE
from jobs.bench.measure import milliseconds

COPY, BF16, FP16, FP8, FP32 = "copy", "bf16", "fp16", "fp8", "fp32"
SECONDS = 0.5


def run(context: Context) -> None:
    """Measure copies and matrix products, and the clocks after them."""
    for name in context.left_to_do((COPY, BF16, FP16, FP8, FP32)):
        with context.case(name):
            _measure(context, name)


def _measure(context: Context, name: str) -> None:
    if name == COPY:
        work, size = _copy(context)
        unit = "GB/s"
    else:
        work, size = _product(context, name)
        unit = "TFLOP/s"
    took = context.time(work, SECONDS if context.on_gpu else 0.0, recorded=True)
    rate = size / milliseconds(took)["p50_ms"] * 1e3 / (1e9 if name == COPY else 1e12)
    context.write(name, VALUE, value=rate, unit=unit, clocks=read_clocks(context.device))
    context.write_timing(f"{name}, timed", unit, 1, name, took, rate=rate)


def _copy(context: Context) -> tuple[Callable[[], object], float]:
    """Copy within the device's memory; the size is the bytes that are read and written."""
    count = (32 << 20) if context.tiny else (2 << 30)
    source = torch.ones(count, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    return partial(target.copy_, source), 2.0 * count


def _product(context: Context, name: str) -> tuple[Callable[[], object], float]:
    """Multiply two square matrices of random numbers; the size is the number of operations."""
    side = 256 if context.tiny else 8192
    a, b = (torch.randn(side, side, device=context.device) for _ in range(2))
    operations = 2.0 * side**3
    if name == FP8:
        return _fp8_product(context, a, b), operations
    if name == FP32:
        torch.backends.cuda.matmul.allow_tf32 = False
    else:
        dtype = torch.bfloat16 if name == BF16 else torch.float16
        a, b = a.to(dtype), b.to(dtype)
    out = torch.empty_like(a)
    return partial(torch.mm, a, b, out=out), operations


def _fp8_product(context: Context, a: torch.Tensor, b: torch.Tensor) -> Callable[[], object]:
    if not context.on_gpu or torch.cuda.get_device_capability(context.device) < (8, 9):
        raise Absent("this device multiplies no fp8: GPUs do from compute capability 8.9")
    left, right = (matrix.to(torch.float8_e4m3fn) for matrix in (a, b))
    one = torch.ones((), device=context.device)
    return partial(
        torch._scaled_mm, left, right.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def known_ceilings(context: Context) -> dict[str, float]:
    """Return the rates in the journal: GB/s of COPY, and TFLOP/s of products.

    Rates that are missing are measured now.
    """
    own = Context("ceilings", context.folder, context.device, context.tiny, context.deadline)
    run(own)
    return {
        record["case"]: record["value"]
        for record in own.journal.records()
        if record["step"] == "ceilings" and record["kind"] == VALUE
    }
