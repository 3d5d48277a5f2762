"""How fast the detector is on sizes of real photos, in batches as the pipeline forms them."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from jobs.bench.gpu.context import Context
from jobs.bench.gpu.gates import Gate, refuse_wrong
from jobs.bench.gpu.sizes import Size, draw_sizes
from model.cuda_graphs import Graphed
from model.predictor import PendingDetections
from model.zoo import named_model
from pipeline.schema import OK, PREPARED
from pipeline.stages.detect import CPU_CALLS, CPU_THREADS, GPU_CALLS, Detector, DetectorSpec
from pipeline.storage.errors import CommandFailed

IMAGES, TINY_IMAGES = 1600, 24
IMAGES_PER_CALL = 100  # a block of the pipeline at 800 x 1066
# the second pass also has the recorded graphs
PASSES = ("first pass, kernels compiled", "second pass")


@dataclass
class Fill:
    """How full the batches were that a detector submitted."""

    images: int = 0
    places: int = 0  # of images and blanks
    batches: int = 0
    pixels: int = 0  # pixels of the images themselves
    canvas: int = 0  # pixels of the batches' canvases, padding included
    forms: Counter[tuple[int, ...]] = field(default_factory=Counter)  # (count, height, width)

    def add(self, pixels: Tensor, valid: Tensor | None) -> None:
        """Count a batch: pixels (B, H, W, 3), and the valid sizes (B, 2) of its images."""
        count, height, width, _ = pixels.shape
        areas = [height * width] * count if valid is None else valid.prod(1).tolist()
        images = [area for area in areas if area > 1]  # a blank has one pixel
        self.images += len(images)
        self.places += count
        self.batches += 1
        self.pixels += sum(images)
        self.canvas += count * height * width
        self.forms[count, height, width] += 1

    def describe(self) -> dict[str, Any]:
        return {
            "mean_batch": round(self.images / self.batches, 3),
            "mean_fill": round(self.images / self.places, 4),
            "canvas_per_pixel": round(self.canvas / self.pixels, 4),
            "batches": self.batches,
            "forms": len(self.forms),
        }


def run(context: Context) -> None:
    """Label images of mixed sizes twice, for each model."""
    models = (
        ["shapes-tiny"] if context.tiny else ["deformable-detr", "deformable-detr-single-scale"]
    )
    for model in models:
        names = [f"{model}, COCO's sizes, {one}" for one in PASSES]
        if set(names) <= context.finished:
            continue
        with context.case(names[0]):
            refuse_wrong(context, Gate(model, "bf16", True))
            _measure(context, model, names)


def _measure(context: Context, model: str, names: list[str]) -> None:
    sizes = draw_sizes(TINY_IMAGES if context.tiny else IMAGES)
    rule = named_model(model).config().resize
    tables = tables_of([rule.target_size(*size) for size in sizes], sizes)
    device = "cuda" if context.on_gpu else "cpu"
    calls = GPU_CALLS if context.on_gpu else CPU_CALLS
    session = f"mix-{time.time_ns()}"
    detector = Detector(
        DetectorSpec(model, "random", device, "bf16", 0.3, None, session, None, CPU_THREADS, calls)
    )
    for name in names:
        before = _passes(detector)
        with _Watched(detector) as fill:
            began = time.perf_counter()
            with ThreadPoolExecutor(calls) as pool:
                labelled = list(pool.map(detector, tables))
            took = time.perf_counter() - began
        failed = sum(status != OK for t in labelled for status in t["status"].to_pylist())
        if failed:
            raise CommandFailed(f"{failed} of {len(sizes)} images failed")
        passes = _passes(detector)
        passes.subtract(before)
        context.write_timing(
            name,
            "detr-batch",
            detector.predictor.count,
            "bf16",
            [took],
            images=len(sizes),
            calls=calls,
            passes=dict(passes),
            **fill.describe(),
        )


def _passes(detector: Detector) -> Counter[str]:
    detect = detector.predictor.detect
    return Counter(detect.passes if isinstance(detect, Graphed) else {})


class _Watched:
    """Records the form of each batch that a detector submits."""

    def __init__(self, detector: Detector):
        self.predictor = detector.predictor
        self.fill = Fill()
        self.lock = threading.Lock()

    def __enter__(self) -> Fill:
        submit = self.predictor.submit

        def watched(pixels: Tensor, valid: Tensor | None, sizes: Tensor) -> PendingDetections:
            with self.lock:
                self.fill.add(pixels, valid)
            return submit(pixels, valid, sizes)

        vars(self.predictor)["submit"] = watched
        return self.fill

    def __exit__(self, *_: object) -> None:
        del vars(self.predictor)["submit"]


def tables_of(prepared: list[Size], shown: list[Size]) -> list[pa.Table]:
    """Make PREPARED tables of random images; each table is one call of the detector."""
    noise = np.random.default_rng(0).integers(0, 256, 3 * 1400 * 1400, np.uint8)
    rows = []
    for index, ((height, width), (rows_shown, columns_shown)) in enumerate(
        zip(prepared, shown, strict=True)
    ):
        start = index % 97
        rows.append(
            {
                "image_id": str(index),
                "shard": "mix",
                "index_in_shard": index,
                "status": OK,
                "height": rows_shown,
                "width": columns_shown,
                "rows": height,
                "columns": width,
                "pixels": noise[start : start + 3 * height * width].tobytes(),
            }
        )
    return [
        pa.Table.from_pylist(rows[start : start + IMAGES_PER_CALL], schema=PREPARED)
        for start in range(0, len(rows), IMAGES_PER_CALL)
    ]
