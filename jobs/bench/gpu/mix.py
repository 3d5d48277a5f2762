"""How fast the detector is on sizes of real photos, in batches as the pipeline forms them."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from jobs.bench.gpu.context import Context
from jobs.bench.gpu.fill import Fill, watch_batches
from jobs.bench.gpu.gates import Gate, refuse_wrong
from jobs.bench.gpu.sizes import Size, draw_sizes
from model.cuda_graphs import Graphed
from model.named import RANDOM, named_model
from model.predictor import Predictor
from pipeline.schema import OK, PREPARED
from pipeline.stages.detect import CPU_CALLS, CPU_THREADS, GPU_CALLS, Detector, DetectorSpec
from pipeline.storage.errors import CommandFailed

IMAGES, TINY_IMAGES = 1600, 24
IMAGES_PER_CALL = 100  # a block of the pipeline at 800 x 1066
# the second pass also has the recorded graphs
PASSES = ("first pass, kernels compiled", "second pass")


class Mix:
    """A detector, and images of COCO's sizes that it labels as the pipeline does.

    On a CPU it computes each image alone with CPU_THREADS threads. On a GPU GPU_CALLS calls fill
    the batches together; `count` is the number of images in each (None: the detector's own).
    """

    def __init__(
        self,
        model: str,
        weights: str | None,
        precision: str,
        device: str,
        images: int,
        count: int | None = None,
    ):
        sizes = draw_sizes(images)
        rule = named_model(model).config().resize
        self.images = images
        prepared = [rule.prepared_size(*size, enlarge=device == "cpu") for size in sizes]
        self.tables = tables_of(prepared, sizes)
        self.calls = CPU_CALLS if device == "cpu" else GPU_CALLS
        session = f"mix-{time.time_ns()}"
        self.detector = Detector(
            DetectorSpec(
                *(model, weights, device, precision, 0.3, count, session, None),
                threads=CPU_THREADS,
                calls=self.calls,
            )
        )
        self.fill = Fill()  # of the last pass
        watch_batches(self.detector.predictor, lambda *batch: self.fill.add(*batch))

    def label(self) -> float:
        """Label all images once, and return the seconds. CommandFailed if an image fails."""
        self.fill = Fill()
        began = time.perf_counter()
        with ThreadPoolExecutor(self.calls) as pool:
            labelled = list(pool.map(self.detector, self.tables))
        took = time.perf_counter() - began
        failed = sum(status != OK for t in labelled for status in t["status"].to_pylist())
        if failed:
            raise CommandFailed(f"{failed} of {self.images} images failed")
        return took

    def passes(self) -> Counter[str]:
        """The number of batches so far by how a GPU ran them; nothing on a CPU."""
        predictor = self.detector.predictor
        detect = predictor.detect if isinstance(predictor, Predictor) else None
        return Counter(detect.passes if isinstance(detect, Graphed) else {})


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
    images = TINY_IMAGES if context.tiny else IMAGES
    mix = Mix(model, RANDOM, "bf16", context.device, images)
    for name in names:
        before = mix.passes()
        took = mix.label()
        passes = mix.passes()
        passes.subtract(before)
        context.write_timing(
            name,
            "detr-batch",
            mix.detector.predictor.count,
            "bf16",
            [took],
            images=images,
            calls=mix.calls,
            passes=dict(passes),
            **mix.fill.describe(),
        )


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
