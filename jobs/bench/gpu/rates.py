"""The detector's rate, from bytes to boxes, and where its time goes."""

from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from jobs.bench.gpu.ceilings import known_ceilings
from jobs.bench.gpu.context import Context
from jobs.bench.gpu.gates import Gate, refuse_wrong
from jobs.bench.gpu.parts import Part, measure_parts
from model.deformable_detr import DeformableDetr
from model.named import named_model
from model.predictor import Predictor
from model.resize import canvas_rule
from model.zoo import create_deformable_detr

SECONDS = 0.5  # for each case: 30 replays of the slowest
SIZE, TINY_SIZE = (800, 1066), (96, 130)
SMALLER = 32  # pixels by which a padded image may be smaller
BATCHES_IN_PARTS = (2, 8)  # batch sizes whose parts are measured too
MODELS = (
    "deformable-detr",
    "deformable-detr-single-scale",
    "deformable-detr-with-box-refine-two-stage",
)


@dataclass(frozen=True)
class Rate:
    """A case: a detector, and the form of its batches."""

    gate: Gate
    batch: int

    def __str__(self) -> str:
        return f"{self.gate}, batch {self.batch}"


def cases(tiny: bool) -> list[Rate]:
    """List the cases, those of one detector together, the most important first."""
    if tiny:
        gates = [Gate("deformable-detr-single-scale", "bf16", padded) for padded in (False, True)]
        return [Rate(gate, batch) for gate in gates for batch in (1, 2)]
    return [
        Rate(Gate(model, precision, padded), batch)
        for precision in ("bf16", "mixed", "int8", "fp16")
        for model in MODELS
        for padded in (False, True)
        for batch in (8, 32, 1, 16)
    ]


def run(context: Context) -> None:
    """Time each case, and its parts."""
    ceilings = known_ceilings(context)
    predictor: Predictor | None = None
    made_for = None
    for rate in cases(context.tiny):
        if str(rate) in context.finished:
            continue
        with context.case(str(rate)):
            refuse_wrong(context, rate.gate)
            if made_for != (rate.gate.model, rate.gate.precision):
                predictor = make_predictor(context, rate.gate)
                made_for = (rate.gate.model, rate.gate.precision)
            assert predictor is not None
            with torch.inference_mode():
                _measure(context, rate, predictor, ceilings)


def make_predictor(context: Context, gate: Gate) -> Predictor:
    """Make a detector with random weights."""
    net = create_deformable_detr(
        gate.model, "random", context.device, gate.precision, padding="invariant"
    )
    return Predictor(net, context.device)


def _measure(
    context: Context, rate: Rate, predictor: Predictor, ceilings: dict[str, float]
) -> None:
    inputs = make_inputs(context, rate)
    detect = partial(predictor._detect, *inputs)
    if context.on_gpu:
        torch.cuda.empty_cache()  # frees what a check has left
        torch.cuda.reset_peak_memory_stats(context.device)
    took = context.time(detect, 0.0 if context.tiny else SECONDS, recorded=True)
    memory = torch.cuda.max_memory_reserved(context.device) >> 20 if context.on_gpu else None
    details: dict[str, Any] = {}
    with context.case(f"{rate}, parts"):  # a failure here does not cost the timing above
        timed = rate.batch in BATCHES_IN_PARTS
        assert isinstance(predictor.net, DeformableDetr)
        parts = measure_parts(predictor.net, detect, context.device, ceilings, timed)
        details = describe_bound(parts, median(took) * 1e3)
        if timed:
            details["parts"] = describe_parts(parts)
    context.write_timing(
        str(rate),
        "detr-batch",
        rate.batch,
        rate.gate.precision,
        took,
        images=rate.batch,
        memory=memory,
        **details,
    )


def make_inputs(context: Context, rate: Rate) -> tuple[Tensor, Tensor | None, Tensor]:
    """Make pixels (B, H, W, 3), valid sizes (B, 2) if padded, and the sizes of the images."""
    height, width = TINY_SIZE if context.tiny else SIZE
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([[height, width]] * rate.batch)
    valid = None
    if rate.gate.padded:
        less = torch.randint(0, SMALLER, (rate.batch, 2), generator=generator)
        valid = (sizes - less).to(context.device)
        rule = named_model(rate.gate.model).config().resize
        height, width = canvas_rule(rule).canvas(height, width)
    shape = (rate.batch, height, width, 3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return pixels.to(context.device), valid, sizes.to(context.device)


def describe_bound(parts: dict[str, Part], whole_ms: float) -> dict[str, Any]:
    """Return the bound of the whole detector, and its share in the measured time."""
    bound = sum(part.bound_ms for part in parts.values())
    return {"bound_ms": round(bound, 4), "share_of_bound": round(bound / whole_ms, 4)}


def describe_parts(parts: dict[str, Part]) -> dict[str, dict[str, float]]:
    """Describe each part: its share of the time and its time, beside its bounds, in ms."""
    counted = sum(part.milliseconds for part in parts.values()) or 1.0  # 0: no profiler here
    return {
        name: {
            "share": round(part.milliseconds / counted, 4),
            "ms": round(part.milliseconds, 4),
            "compute_ms": round(part.compute_ms, 4),
            "memory_ms": round(part.memory_ms, 4),
            "bound_ms": round(part.bound_ms, 4),
        }
        for name, part in parts.items()
    }
