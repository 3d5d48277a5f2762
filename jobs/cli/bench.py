"""`detr-batch bench`."""

import shlex
from pathlib import Path
from typing import Any

from jobs.bench.gpu import STEPS


def add(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure the attention, a whole model or the pipeline, beside its peers",
        description="Check against the reference, then time all in turn; medians, and rows added "
        "to the results. Peers are those that are installed: transformers, openvino.",
    )
    subjects = bench.add_subparsers(required=True, metavar="SUBJECT")
    op = subjects.add_parser(
        "op",
        help="implementations of the attention",
        description="Times are the clock's, launches included; on GPUs that of Triton's kernel is "
        "the device's own, in a CUDA graph, as detectors run it.",
    )
    model = subjects.add_parser("model", help="whole detectors, of random weights")
    model.add_argument(
        "--model", default="deformable-detr", help="one, several with commas between, or 'all'"
    )
    model.add_argument("--size", default="800x1066", help="rows x columns (default: 800x1066)")
    model.add_argument(
        "--batch-size", default="1", help="pictures; several with commas between (default: 1)"
    )
    pipeline = subjects.add_parser("pipeline", help="from JPEG files to Parquet")
    pipeline.add_argument("--model", default="deformable-detr", help="a published one")
    pipeline.add_argument("--images", type=int, default=24, help="files (default: 24)")
    launches = subjects.add_parser("launches", help="tune the Triton kernel for this GPU")
    launches.add_argument("--table", type=Path, help="JSON file to fill (default: the project's)")
    launches.set_defaults(run=_launches)
    for subject in (op, model, pipeline, launches):
        option = subject.add_argument
        option("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
        option("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
        option("--seconds", type=float, default=60.0, help="to time each case for (default: 60)")
    scale = subjects.add_parser("scale", help="the pipeline with more and more simulated devices")
    scale.add_argument(
        "--detectors", default="1,2,4,8", help="with commas between (default: 1,2,4,8)"
    )
    scale.add_argument(
        "--device-seconds",
        type=float,
        default=0.25,
        help="that each takes an image (default: 0.25)",
    )
    scale.add_argument(
        "--seconds", type=float, default=30.0, help="of each run, three a number (default: 30)"
    )
    scale.set_defaults(run=_scale)
    for subject in (op, model, pipeline, scale):
        option = subject.add_argument
        option("--results", type=Path, help="CSV file to add to (default: the project's)")
        option("--json", action="store_true", help="for programs")
    gpu = subjects.add_parser(
        "gpu",
        help="all that a GPU can tell, in one command",
        description="Each step is a process with a deadline of its own; results are JSON lines in "
        "DIR, so that nothing is lost when time runs out. --collect adds them to the results and "
        "prints them.",
    )
    gpu.add_argument("--out", metavar="DIR", type=Path, help="folder for the results")
    gpu.add_argument(
        "--collect",
        metavar="DIR",
        type=Path,
        help="add what is in DIR to the results and tables, and print it; runs nothing",
    )
    gpu.add_argument("--seconds", type=float, default=560.0, help="for all steps (default: 560)")
    gpu.add_argument("--steps", default="all", help=f"with commas between: {','.join(STEPS)}")
    gpu.add_argument("--device", default="cuda", help="cuda, cuda:1, ... (default: cuda)")
    gpu.add_argument(
        "--tiny", action="store_true", help="few small shapes, to see that all works on a CPU"
    )
    gpu.add_argument("--results", type=Path, help="CSV file to add to (default: the project's)")
    gpu.set_defaults(run=_gpu)
    plot = subjects.add_parser("plot", help="the newest measurements as bars")
    plot.add_argument("picture", metavar="FILE", type=Path, help=".svg, .png or .pdf")
    plot.add_argument("--results", type=Path, help="CSV file to read (default: the project's)")
    plot.set_defaults(run=_plot)
    for name, subject in (("op", op), ("model", model), ("pipeline", pipeline)):
        subject.set_defaults(run=_bench, subject=name)


def _bench(
    subject: str,
    precision: str,
    device: str,
    seconds: float,
    results: Path | None,
    json: bool,
    **own: Any,
) -> int:
    from jobs.bench.subjects import SUBJECTS, BenchOptions

    SUBJECTS[subject](BenchOptions(precision, device, seconds, results, json), **own)
    return 0


def _launches(device: str, precision: str, seconds: float, table: Path | None) -> int:
    from jobs.bench.subjects import launches

    print(launches(device, precision, seconds, table))
    return 0


def _gpu(
    out: Path | None,
    collect: Path | None,
    seconds: float,
    steps: str,
    device: str,
    tiny: bool,
    results: Path | None,
) -> int:
    from jobs.bench.gpu.collect import Tables
    from jobs.bench.gpu.collect import collect as collect_results
    from jobs.bench.gpu.run import GpuOptions, run_steps, steps_named

    if (out is None) == (collect is None):
        raise ValueError("give either --out DIR, to measure, or --collect DIR, to keep and print")
    if collect is not None:
        print(collect_results(collect, Tables(results)))
        return 0
    assert out is not None
    finished = run_steps(GpuOptions(out, seconds, steps_named(steps), device, tiny))
    print(f"detr-batch bench gpu --collect {shlex.quote(str(out))}")
    return 0 if finished else 1


def _plot(picture: Path, results: Path | None) -> int:
    from jobs.bench.subjects import plot

    plot(picture, results)
    return 0


def _scale(
    detectors: str, device_seconds: float, seconds: float, results: Path | None, json: bool
) -> int:
    from jobs.bench.subjects import scale

    scale(detectors, device_seconds, seconds, results, json)
    return 0
