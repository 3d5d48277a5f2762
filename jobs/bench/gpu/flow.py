"""`label` as users run it, from JPEG files to tables, compared with the detector alone."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from jobs.bench.gpu.context import Absent, Context, Wrong
from jobs.bench.gpu.labelling import Labelled, Watch, run_label
from jobs.bench.gpu.sizes import Size, draw_sizes
from model.jpeg import Refused, check_decoder
from model.zoo import resolved_precision

ONE_SIZE, MIX = "one size", "mix"
# Cases by name: the kind of photos, the number of calls that a detector takes at once, and where
# JPEGs are decoded. The most valuable cases come first.
CASES = {
    "one size, two calls": (ONE_SIZE, 2, "cpu"),
    "mix, two calls": (MIX, 2, "cpu"),
    "mix, two calls, decoded on the GPU": (MIX, 2, "gpu"),
    "one size, one call": (ONE_SIZE, 1, "cpu"),
    "mix, one call": (MIX, 1, "cpu"),
}
PREPARING, DECODING = "mix, preparing alone", "mix, decoding on the GPU alone"
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
    """Prepare photos; label photos of one size and of many, with one and two calls at once.

    Photos are decoded on CPUs, and on the GPU if there is one.
    """
    cases = list(context.left_to_do(TINY_CASES if context.tiny else CASES))
    images = count_images(context, len(cases))
    with TemporaryDirectory(prefix="detr-batch-flow-") as folder:
        for name in context.left_to_do([PREPARING]):
            with context.case(name):
                check_packages(context.device)
                _prepare(context, provide_photos(Path(folder) / MIX, MIX, images, context.tiny))
        for name in context.left_to_do([DECODING]):
            with context.case(name):
                check_packages(context.device)
                check_gpu_decodes(context)
                _decode(context, provide_photos(Path(folder) / MIX, MIX, images, context.tiny))
        for name in cases:
            with context.case(name):
                check_packages(context.device)
                load, calls, decode = CASES[name]
                if decode == "gpu":
                    check_gpu_decodes(context)
                photos = provide_photos(Path(folder) / load, load, images, context.tiny)
                _measure(context, name, photos, images, calls, decode)


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


def check_gpu_decodes(context: Context) -> None:
    """Absent if there is no GPU, or this torchvision decodes no JPEG on it."""
    if not context.on_gpu:
        raise Absent("CPUs decode JPEGs in preparers: `label --decode gpu` is for GPUs")
    try:
        check_decoder(torch.device(context.device))
    except Refused as error:
        raise Absent(f"torchvision decodes no JPEG on {context.device} ({error})") from error


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

    contents, seconds = _some_photos(context, photos)
    for way, cost in measure_preparing(contents, seconds).items():
        figures = {
            "cores_for_1000_images_per_second": cost.cores(len(contents)),
            "bytes_per_image": cost.bytes_per_image,
        }
        context.write_timing(
            PREPARING,
            way,
            1,
            "uint8",
            cost.seconds,
            images=len(contents),
            **dict(_rounded(figures)),
        )


def _decode(context: Context, photos: Path) -> None:
    """Measure what decoding and resizing cost a GPU, and the core that asks it to."""
    from jobs.bench.gpu.decoding import measure_decoding  # imported here, as it needs simplejpeg

    contents, seconds = _some_photos(context, photos)
    found = measure_decoding(contents, torch.device(context.device), seconds)
    figures = {
        "cores_for_1000_images_per_second": 1e3 * median(found.cpu_seconds) / len(contents),
        "bytes_per_image": sum(map(len, contents)) / len(contents),
    }
    context.write_timing(
        DECODING,
        "decode and resize on the GPU",
        1,
        "uint8",
        found.seconds,
        images=len(contents),
        error=found.error,
        **dict(_rounded(figures)),
    )


def _some_photos(context: Context, photos: Path) -> tuple[list[bytes], float]:
    """The files that are decoded again and again, and for how many seconds."""
    files = sorted(photos.iterdir())[: TINY_PREPARED if context.tiny else PREPARED]
    seconds = TINY_SECONDS if context.tiny else PREPARING_SECONDS
    return [file.read_bytes() for file in files], seconds


def _measure(
    context: Context, name: str, photos: Path, images: int, calls: int, decode: str
) -> None:
    model = TINY_MODEL if context.tiny else MODEL
    device = "cuda" if context.on_gpu else "cpu"
    with TemporaryDirectory(prefix="detr-batch-labels-") as folder:
        output = Path(folder) / "labels"
        given = {"input": str(photos), "model": model, "device": device, "decode": decode}
        options = {**given, **OPTIONS}
        labelled = run_label(output, options, calls, context.device)
        report = read_report(output, images)
    context.write_timing(
        name,
        f"label, {calls} {'call' if calls == 1 else 'calls'} at once",
        BATCH,
        resolved_precision("auto", device),
        [labelled.seconds],
        images=images,
        row_case=f"{model}, {images} photos, {CASES[name][0]}"
        + (", decoded on the GPU" if decode == "gpu" else ""),
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
