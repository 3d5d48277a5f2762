"""`label` as users run it, from JPEG files to tables, compared with the detector alone."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from jobs.bench.gpu.context import Absent, Context, Wrong
from jobs.bench.gpu.labelling import Labelled, Watch, run_label
from jobs.bench.gpu.sizes import Size, draw_sizes
from model.zoo import resolved_precision

ONE_SIZE, MIX = "one size", "mix"
# Cases by name: the kind of photos, and the number of calls that a detector takes at once. The most
# valuable cases come first.
CASES = {
    "one size, two calls": (ONE_SIZE, 2),
    "mix, two calls": (MIX, 2),
    "one size, one call": (ONE_SIZE, 1),
    "mix, one call": (MIX, 1),
}
PREPARING = "mix, preparing alone"
PREPARED, TINY_PREPARED = 200, 8  # photos
PREPARING_SECONDS, TINY_SECONDS = 12.0, 0.1
TINY_CASES = ("one size, two calls", "mix, one call")
# beyond the packages of a machine with torch
NEEDED = ("ray", "duckdb", "s3fs", "simplejpeg", "scipy")
MODEL, TINY_MODEL = "deformable-detr", "shapes-tiny"
SIZE, TINY_SIZE = (800, 1066), (288, 400)  # height and width that need no resizing
DISTINCT, TINY_DISTINCT = 16, 4  # different images among the photos
BATCH = 8
OPTIONS = {"weights": "random", "page": False, "batch_size": BATCH}
# The number of photos is chosen by an expected rate in images/s and by seconds of start-up, within
# these bounds.
RATE, START_SECONDS, FEWEST, MOST = 400, 25, 2_000, 10_000
TINY_IMAGES = 24  # also used on CPUs
FIGURES = (
    "images_per_second",  # from the call of `label` on: with weights, listing and the start of Ray
    "images_per_second_steady",
    "wall_seconds",
    "startup_seconds",
    "startup_parts",
    "limiting_stage",
    "stage_use",
    "stage_workers",
    "seconds_by_stage",
    "cpus",
    "cpu_use",
)


def run(context: Context) -> None:
    """Prepare photos; label photos of one size and of many, with one and two calls at once."""
    cases = list(context.left_to_do(TINY_CASES if context.tiny else CASES))
    images = count_images(context, len(cases))
    with TemporaryDirectory(prefix="detr-batch-flow-") as folder:
        for name in context.left_to_do([PREPARING]):
            with context.case(name):
                check_packages(context.device)
                _prepare(context, provide_photos(Path(folder) / MIX, MIX, images, context.tiny))
        for name in cases:
            with context.case(name):
                check_packages(context.device)
                load, calls = CASES[name]
                photos = provide_photos(Path(folder) / load, load, images, context.tiny)
                _measure(context, name, photos, images, calls)


def check_packages(device: str) -> None:
    """Absent if `label` cannot run here, or not on that device."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise Absent(
            f"`label` needs {', '.join(missing)}: `python -m jobs.bench.wheels DIR`, run where a "
            "package index is, gathers what to install here"
        )
    if torch.device(device).index:
        raise Absent(
            f"`label` takes the first GPU, not {device}: set CUDA_VISIBLE_DEVICES, and give "
            "--device cuda"
        )


def count_images(context: Context, cases: int) -> int:
    """Return how many images each of `cases` can label in the time left."""
    if context.tiny or not context.on_gpu:
        return TINY_IMAGES
    seconds = context.seconds_left() / max(1, cases) - START_SECONDS
    return min(MOST, max(FEWEST, int(RATE * seconds)))


def provide_photos(folder: Path, load: str, images: int, tiny: bool) -> Path:
    """Return the folder with the photos of a load, and write them if they are not there."""
    from jobs.bench.gpu.photos import write_photos  # imported here, as it needs scipy

    if not folder.exists():
        sizes: list[Size] = [TINY_SIZE if tiny else SIZE] * images
        write_photos(
            folder,
            draw_sizes(images) if load == MIX else sizes,
            TINY_DISTINCT if tiny else DISTINCT,
        )
    return folder


def _prepare(context: Context, photos: Path) -> None:
    """Measure what decoding costs with and without resizing. It uses one core, and no GPU."""
    from jobs.bench.gpu.preparing import measure_preparing  # imported here, as it needs simplejpeg

    files = sorted(photos.iterdir())[: TINY_PREPARED if context.tiny else PREPARED]
    contents = [file.read_bytes() for file in files]
    seconds = TINY_SECONDS if context.tiny else PREPARING_SECONDS
    for way, cost in measure_preparing(contents, seconds).items():
        figures = {
            "cores_for_1000_images_per_second": cost.cores(len(files)),
            "bytes_per_image": cost.bytes_per_image,
        }
        context.write_timing(
            PREPARING,
            way,
            1,
            "uint8",
            cost.seconds,
            images=len(files),
            **dict(_rounded(figures)),
        )


def _measure(context: Context, name: str, photos: Path, images: int, calls: int) -> None:
    model = TINY_MODEL if context.tiny else MODEL
    device = "cuda" if context.on_gpu else "cpu"
    with TemporaryDirectory(prefix="detr-batch-labels-") as folder:
        output = Path(folder) / "labels"
        options = {"input": str(photos), "model": model, "device": device, **OPTIONS}
        labelled = run_label(output, options, calls, context.device)
        report = read_report(output, images)
    context.write_timing(
        name,
        f"label, {calls} {'call' if calls == 1 else 'calls'} at once",
        BATCH,
        resolved_precision("auto", device),
        [labelled.seconds],
        images=images,
        row_case=f"{model}, {images} photos, {CASES[name][0]}",
        **describe(report, labelled, images),
    )


def read_report(output: Path, images: int) -> dict[str, Any]:
    """Read the run's report. Wrong if the run did not label all `images`."""
    from jobs.report.reports import report_of  # here, as it needs DuckDB

    report = report_of(str(output))
    if (report["images"], report["ok"]) != (images, images):
        raise Wrong(f"{report['ok']} of {images} images were labelled; failed: {report['failed']}")
    return report


def describe(report: dict[str, Any], labelled: Labelled, images: int) -> dict[str, Any]:
    """Describe the run beside its time. Figures that need a longer run are None."""
    use, watch = report["stage_use"], labelled.watch
    cpu = {kind: 1e3 * seconds / images for kind, seconds in watch.cpu_seconds().items()}
    figures = {
        **{name: report[name] for name in FIGURES},
        **labelled.fill.describe(),
        "device_share": report["device_use"],  # share of the wall time; by events on GPUs
        "device_share_steady": None if use is None else use["detect"],
        **describe_steady(watch),
        "cpu_seconds_per_1000_images": cpu,  # of the whole command
        "kb_per_image": report["encoded_bytes"] / images / 1e3,
        "detections_per_image": report["detections"] / images,
    }
    return dict(_rounded(figures))


def describe_steady(watch: Watch) -> dict[str, Any]:
    """Measure between the first block and the last: the share of time with a kernel, and cores."""
    steady = watch.steady()
    if steady is None:
        return {"device_share_steady_nvml": None, "cores_steady": None}
    first, last = steady
    seconds = watch.samples[last].seconds - watch.samples[first].seconds
    known = [one.device_use for one in watch.samples[first:last] if one.device_use is not None]
    return {
        "device_share_steady_nvml": sum(known) / len(known) if known else None,
        "cores_steady": {kind: cpu / seconds for kind, cpu in watch.cpu_seconds(steady).items()},
    }


def _rounded(figures: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Round figures to four digits, like the other columns of the results."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield name, dict(_rounded(value))
        else:
            yield name, float(f"{value:.4g}") if isinstance(value, float) else value
