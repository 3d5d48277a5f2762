"""`detr-batch bench pipeline --photos mix`: `label` as a whole, on JPEG files of COCO's sizes."""

from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jobs.bench.gpu.flow import describe, read_report
from jobs.bench.gpu.labelling import Labelled, run_label
from jobs.bench.gpu.photos import write_photos
from jobs.bench.gpu.sizes import draw_sizes
from jobs.bench.measure import Measurement, interleaved, milliseconds
from jobs.bench.mix.model import checked_error, weights_for
from jobs.bench.pipeline import OURS
from pipeline.stages.detect import CPU_CALLS, GPU_CALLS
from pipeline.storage.errors import CommandFailed


def bench_pipeline_on_mix(
    model: str, images: int, precision: str, device: str, seconds: float
) -> tuple[Measurement, dict[str, Any]]:
    """Check the detector, then time whole commands; also return the report of the last one.

    Wrong, or CommandFailed, without any times, if the detector is wrong or an image fails.
    """
    error = checked_error(model, precision, device)
    calls = CPU_CALLS if device == "cpu" else GPU_CALLS
    with TemporaryDirectory(prefix="detr-batch-mix-") as name:
        folder = Path(name)
        write_photos(folder / "photos", draw_sizes(images))
        options = {"input": str(folder / "photos"), "model": model, "weights": weights_for(model)}
        options |= {"precision": precision, "device": device}
        outputs = (folder / f"out-{index:03}" for index in count())

        def label() -> tuple[Labelled, dict[str, Any]]:
            output = next(outputs)
            labelled = run_label(output, options, calls, device)
            if labelled.fill.images != images:
                raise CommandFailed(
                    f"the detectors computed {labelled.fill.images} images instead of {images}: "
                    "batches failed, so nothing is timed"
                )
            return labelled, read_report(output, images)

        last = label()  # fills the caches of files and kernels

        def timed() -> float:
            nonlocal last
            last = label()
            return last[0].seconds

        took = interleaved({OURS: timed}, seconds)[OURS]
    labelled, report = last
    measured = Measurement(
        benchmark="pipeline",
        case=f"{model}, {images} JPEGs of COCO's sizes, start-up included",
        subject=OURS,
        batch=images,
        precision=precision,
        **(spread := milliseconds(took)),
        images_per_second=1e3 * images / spread["p50_ms"],
        peak_memory_mib=None,
        error=error,
        details=describe(report, labelled, images),
    )
    return measured, report
