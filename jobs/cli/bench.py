"""`detr-batch bench`: measure the attention, a whole model or the pipeline."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.bench.gpu import STEPS
from jobs.bench.options import (
    ONE,
    BenchOptions,
    LaunchesOptions,
    ModelBenchOptions,
    PipelineBenchOptions,
    PlotOptions,
    ScaleOptions,
    ServeBenchOptions,
    TableOptions,
)
from jobs.cli.options import Options, add_command
from pipeline.storage.errors import InputError


@dataclass(frozen=True)
class GpuOptions:
    """Options of `bench gpu`: measure into `out`, or collect the results in a folder."""

    out: Path | None = field(
        default=None, metadata={"metavar": "DIR", "help": "folder for the results"}
    )
    collect: Path | None = field(
        default=None,
        metadata={
            "metavar": "DIR",
            "help": "add what is in DIR to the results and tables, and print it; runs nothing",
        },
    )
    seconds: float = field(default=560.0, metadata={"help": "for all steps"})
    steps: str = field(default="all", metadata={"help": f"with commas between: {','.join(STEPS)}"})
    device: str = field(default="cuda", metadata={"help": "cuda, cuda:1, ..."})
    tiny: bool = field(
        default=False, metadata={"help": "few small shapes, to see that all works on a CPU"}
    )
    results: Path | None = field(
        default=None, metadata={"help": "CSV file to add to (default: the project's)"}
    )


def add(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure the attention, a whole model or the pipeline, beside its peers",
        description="Check against the reference, then time all in turn; medians, and rows added "
        "to the results. Peers are those that are installed: transformers, openvino.",
    )
    subjects = bench.add_subparsers(required=True, metavar="SUBJECT")
    add_command(
        subjects,
        "op",
        BenchOptions,
        _subject("op"),
        help="implementations of the attention",
        description="Times are the clock's, launches included; on GPUs that of Triton's kernel is "
        "the device's own, in a CUDA graph, as detectors run it.",
    )
    add_command(
        subjects,
        "model",
        ModelBenchOptions,
        _model,
        help="whole detectors, of random weights",
    )
    add_command(
        subjects,
        "table",
        TableOptions,
        _table,
        help="three published detectors side by side",
        description="Parameters, operations, images/s of random weights, memory and cost, beside "
        "published figures. AP is measured where --weights, --images and --annotations are given.",
    )
    add_command(
        subjects,
        "pipeline",
        PipelineBenchOptions,
        _pipeline,
        help="from JPEG files to Parquet",
    )
    add_command(
        subjects,
        "launches",
        LaunchesOptions,
        _launches,
        help="tune the Triton kernel for this GPU",
    )
    add_command(
        subjects,
        "scale",
        ScaleOptions,
        _subject("scale"),
        help="the pipeline with more and more simulated devices",
    )
    add_command(
        subjects,
        "serve",
        ServeBenchOptions,
        _serve,
        help="the endpoint of `serve` under load, beside its detectors alone",
    )
    add_command(
        subjects,
        "gpu",
        GpuOptions,
        _gpu,
        help="all that a GPU can tell, in one command",
        description="Each step is a process with a deadline of its own; results are JSON lines in "
        "DIR, so that nothing is lost when time runs out. --collect adds them to the results and "
        "prints them.",
    )
    add_command(
        subjects, "plot", PlotOptions, _subject("plot"), help="the newest measurements as bars"
    )


def _subject(name: str) -> Callable[[Options], int]:
    """Make a command that calls the function `name` of jobs.bench.subjects."""

    def run(options: Options) -> int:
        from jobs.bench import subjects

        getattr(subjects, name)(options)
        return 0

    return run


def _model(options: ModelBenchOptions) -> int:
    if options.sizes == ONE:
        return _subject("model")(options)
    from jobs.bench.mix.subjects import model_on_mix

    model_on_mix(options)
    return 0


def _table(options: TableOptions) -> int:
    from jobs.bench.table.subject import table

    table(options)
    return 0


def _pipeline(options: PipelineBenchOptions) -> int:
    if options.photos == ONE:
        return _subject("pipeline")(options)
    from jobs.bench.mix.subjects import pipeline_on_mix

    pipeline_on_mix(options)
    return 0


def _serve(options: ServeBenchOptions) -> int:
    from jobs.serve.settings.packages import refuse_missing_packages

    refuse_missing_packages()
    from jobs.bench.serve.subject import serve

    serve(options)
    return 0


def _launches(options: LaunchesOptions) -> int:
    from jobs.bench.subjects import launches

    print(launches(options))
    return 0


def _gpu(options: GpuOptions) -> int:
    from jobs.bench.gpu.collect import Tables, collect
    from jobs.bench.gpu.run import GpuRequest, run_steps, steps_named

    if (options.out is None) == (options.collect is None):
        raise InputError("give either --out DIR, to measure, or --collect DIR, to keep and print")
    if options.collect is not None:
        print(collect(options.collect, Tables(options.results)))
        return 0
    assert options.out is not None
    steps = steps_named(options.steps)
    finished = run_steps(
        GpuRequest(options.out, options.seconds, steps, options.device, options.tiny)
    )
    print(f"detr-batch bench gpu --collect {shlex.quote(str(options.out))}")
    return 0 if finished else 1
