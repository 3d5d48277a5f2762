"""`detr-batch bench table`: the table of the page that this project began from, measured here.

The page compares three detectors by parameters, operations, AP and images/s. Its operations are
multiply-adds, which the papers print as FLOPs, and its images/s are those of other machines.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench.detectors import DETECTOR, Subject, Worker
from jobs.bench.gpu.sizes import Size, coco_sizes
from jobs.bench.measure import Measurement, interleaved, milliseconds, say_progress
from model.config import FasterRcnnConfig
from model.faster_rcnn import build as build_faster_rcnn
from model.named import RANDOM, named_model
from model.zoo import build, offered_precision, resolved_precision

COMMONEST: Size = (480, 640)  # the size of one in five of COCO's photos
SIZES = 8  # at which operations are counted
GPU_COUNTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class PageRow:
    """A row of the page. None: it does not print the number."""

    title: str
    model: str  # ours
    parameters: float  # millions
    gmacs: float  # printed as GFLOPs
    ap: float
    ap_small: float | None
    images_per_second: float


PAGE = (
    PageRow(
        "Deformable DETR, single scale", "deformable-detr-single-scale", 34, 78, 39.4, 20.6, 27.0
    ),
    PageRow("DETR, DC5", "detr-dc5", 41, 187, 43.3, 22.5, 11.4),
    PageRow("Faster R-CNN + FPN", "faster-rcnn", 42, 180, 42.0, None, 26.0),
)
DIFFERENCES = (
    "GMACs: multiply-adds by torch's counter; the page prints them as GFLOPs. They are the mean of "
    f"{SIZES} sizes that divide COCO's val2017 into parts of equal numbers of images; the papers "
    "took its first 100 images. The attention's sampling is no matrix product and is not counted.",
    "Deformable DETR has 300 queries, where the page says 100.",
    "Faster R-CNN: the page's 42.0 AP are of a longer training, whose weights are not published; "
    "torchvision's have 37.0.",
    "images/s of the page are of another machine, and of one image at a time.",
)


@dataclass(frozen=True)
class Case:
    """A detector, and the number of images in its batches."""

    model: str
    precision: str
    count: int


def counted_sizes() -> list[Size]:
    """SIZES sizes of COCO's val2017 that stand for equal numbers of its images, by area."""
    by_area = sorted(coco_sizes().items(), key=lambda one: one[0][0] * one[0][1])
    images = [size for size, count in by_area for _ in range(count)]
    return [images[(2 * part + 1) * len(images) // (2 * SIZES)] for part in range(SIZES)]


def network(model: str) -> nn.Module:
    """The network of a named model with random weights, as in checkpoints."""
    config = named_model(model).config()
    net = build_faster_rcnn(config) if isinstance(config, FasterRcnnConfig) else build(config)
    return net.eval().requires_grad_(False)


def gmacs(net: nn.Module, model: str, size: Size) -> float:
    """Multiply-adds in billions for an image of this displayed height and width."""
    config = named_model(model).config()
    height, width = config.resize.target_size(*size)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, height, width, generator=generator)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net([image] if isinstance(config, FasterRcnnConfig) else image[None])
    return counter.get_total_flops() / 2e9


def bench_table(
    models: list[str], precision: str, device: str, seconds: float
) -> list[Measurement]:
    """Count operations, then time all models in turn: single images, and on GPUs batches too."""
    cases = []
    for model in models:
        config = named_model(model).config()
        chosen = resolved_precision(offered_precision(model, config.precisions, precision), device)
        alone = device == "cpu" or isinstance(config, FasterRcnnConfig)
        cases += [Case(model, chosen, count) for count in ((1,) if alone else GPU_COUNTS)]
    details = {model: _counted(model) for model in models}
    workers: dict[Case, Worker] = {}
    try:
        for case in cases:
            subject = Subject(
                DETECTOR, case.precision, case.model, Path(RANDOM), COMMONEST, case.count, device
            )
            workers[case] = Worker(subject)
            workers[case].warm_up()
        took = interleaved({case: worker.seconds for case, worker in workers.items()}, seconds)
        memory = {case: worker.memory() for case, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.stop()
    return [
        Measurement(
            benchmark="table",
            case=f"{case.model}, {COMMONEST[0]} x {COMMONEST[1]} as displayed",
            subject=DETECTOR,
            batch=case.count,
            precision=case.precision,
            **(spread := milliseconds(took[case])),
            images_per_second=1e3 * case.count / spread["p50_ms"],
            peak_memory_mib=memory[case],
            error=float("nan"),  # nothing is compared: the tests do that
            details=dict(details[case.model]),
        )
        for case in cases
    ]


def _counted(model: str) -> dict[str, Any]:
    say_progress(f"counting the operations of {model}")
    net = network(model)
    each = [gmacs(net, model, size) for size in counted_sizes()]
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    return {"parameters_m": round(millions, 2), "gmacs": round(sum(each) / len(each), 1)}


def as_markdown(
    measured: list[Measurement],
    metrics: Mapping[str, Mapping[str, float]],
    usd_per_hour: float | None,
) -> str:
    """The page's table, with what was measured below each of its rows."""
    lines = [
        "| | parameters | GMACs | AP | AP, small | images/s, one at a time | images/s, best | MiB "
        "| USD per 1,000 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_model: dict[str, list[Measurement]] = {}
    for row in measured:
        by_model.setdefault(row.case.partition(",")[0], []).append(row)
    for page in PAGE:
        if page.model in by_model:
            small = "-" if page.ap_small is None else f"{page.ap_small}"
            lines.append(
                f"| {page.title}, the page | {page.parameters:.0f} M | {page.gmacs:.0f} | "
                f"{page.ap} | {small} | {page.images_per_second} | - | - | - |"
            )
            rows = by_model.pop(page.model)
            lines.append(_measured_line(page.model, rows, metrics, usd_per_hour))
    lines += [_measured_line(m, rows, metrics, usd_per_hour) for m, rows in by_model.items()]
    return "\n".join([*lines, "", *(f"- {line}" for line in DIFFERENCES)])


def _measured_line(
    model: str,
    rows: list[Measurement],
    metrics: Mapping[str, Mapping[str, float]],
    usd_per_hour: float | None,
) -> str:
    rates = {row.batch: row.images_per_second or 0.0 for row in rows}
    count = max(rates, key=lambda batch: rates[batch])
    published = named_model(model).ap
    ap = "-" if published is None else f"{published} (published)"
    small = "-"
    if model in metrics:
        ap, small = (f"{100 * metrics[model][name]:.1f}" for name in ("AP", "AP_S"))
    cost = "-" if usd_per_hour is None else f"{usd_per_hour / 3.6 / rates[count]:.4f}"
    memory = next(row.peak_memory_mib for row in rows if row.batch == count)
    details = rows[0].details
    return (
        f"| `{model}`, {rows[0].precision}, here | {details['parameters_m']} M | "
        f"{details['gmacs']} | {ap} | {small} | {rates[1]:.2f} | {rates[count]:.2f} (of {count}) | "
        f"{memory if memory is not None else '-'} | {cost} |"
    )
