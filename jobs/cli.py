"""The command line: arguments in, exit codes out."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.urls import mask, printable
from pipeline.storage import InputError

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Mistakes of the user are one line on stderr and exit code 2."""
    arguments = vars(parser().parse_args(argv))
    command, again = arguments.pop("run"), arguments.pop("again", "")
    try:
        code = int(command(**arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (InputError, ValueError) as error:
        _say(error)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"detr-batch: interrupted{again}", file=sys.stderr)
        return EXIT_FAILED
    except (RuntimeError, OSError) as error:
        _say(error)
        return EXIT_FAILED


def _say(error: Exception) -> None:
    print(f"detr-batch: {printable(mask(str(error)))}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Every command with its help."""
    top = argparse.ArgumentParser(
        prog="detr-batch", description="Label image lakes with Deformable DETR."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_label(commands)
    _add_train(commands)
    report = commands.add_parser("report", help="throughput and cost of the newest run")
    report.add_argument("output", metavar="OUTPUT")
    report.add_argument("--json", action="store_true", help="for programs")
    report.set_defaults(run=_report)
    query = commands.add_parser("query", help="SQL over the views images and detections")
    query.add_argument("output", metavar="OUTPUT")
    query.add_argument("sql", metavar="SQL", help="a DuckDB SELECT")
    query.set_defaults(run=_query)
    _add_bench(commands)
    models = commands.add_parser("models", help="the named models")
    models.set_defaults(run=_models)
    return top


def _add_label(commands: Any) -> None:
    label = commands.add_parser(
        "label",
        help="label every image under INPUT that OUTPUT does not hold yet",
        description="Label every image under INPUT that OUTPUT does not hold yet. Both are local "
        "paths or URLs (s3://bucket/prefix). The same command, run again, labels what is new; "
        "after a crash or Ctrl-C it finishes what was begun.",
    )
    add = label.add_argument
    add("input", metavar="INPUT", help="images, .tar shards, Parquet files, or a list of URLs")
    add("output", metavar="OUTPUT", help="folder for the tables")
    add("--model", default="deformable-detr", help="a name of `detr-batch models`")
    add("--weights", help="file, URL (with #sha256=... checked), hub id, or 'random'")
    add("--score-threshold", type=float, default=0.3, help="0 keeps the best 100 (default: 0.3)")
    add("--format", default="auto", choices=["auto", "images", "tar", "parquet", "urls"])
    add("--limit", type=int, help="label at most this many images")
    add("--batch-size", type=int, default=8, help="images in one forward pass (default: 8)")
    add("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--num-gpus", type=int, default=1, help="detectors on GPUs (default: 1)")
    add(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        help="a Ray cluster (default: $RAY_ADDRESS, else a local one for this command alone)",
    )
    add("--max-failed-fraction", type=float, default=1.0, help="more failed images: exit code 3")
    add("--instance-type", help="machines this runs on, for the report: see infra/prices.csv")
    add("--spot", action="store_true", help="they cost the spot price")
    add("--usd-per-hour", type=float, help="price of all that runs this, instead")
    add("--relabel", action="store_true", help="replace the labels that OUTPUT has of INPUT")
    add("--dry-run", action="store_true", help="print the plan; touch nothing")
    label.set_defaults(run=_label, again="; the same command takes it up again")


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train on rendered scenes, or fine-tune on a dataset in COCO's format",
        description="Train on rendered scenes; with --images and --annotations on a dataset in "
        "COCO's format, whose classes get new heads. OUTPUT gets last.pt, to go on from, and "
        "model.safetensors, for label --weights.",
    )
    add = train.add_argument
    add("output", metavar="OUTPUT", type=Path, help="folder for checkpoints and weights")
    add("--model", default="shapes-tiny")
    add("--weights", default="random", help="where to start (default: random), as in label")
    add("--images", type=Path, help="folder of training pictures; none: rendered scenes")
    add("--annotations", type=Path, help="COCO annotation file of --images")
    add("--validation-images", type=Path, help="to evaluate on (default: --images)")
    add("--validation-annotations", type=Path, help="of those (default: --annotations)")
    for name, kind, meaning in _TRAIN_NUMBERS:
        add(f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=meaning)
    add("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    add("--device", default="cpu")
    add("--resume", action="store_true", help="go on from OUTPUT/last.pt")
    train.set_defaults(run=_train, again="; --resume goes on from the last evaluation")


_TRAIN_NUMBERS: tuple[tuple[str, type, str], ...] = (
    ("steps", int, "batches (default: 14000)"),
    ("batch_size", int, "pictures (default: 4)"),
    ("learning_rate", float, "highest (default: 4e-4 from random weights, else 5e-5)"),
    ("evaluate_every", int, "steps between evaluations and checkpoints (default: 1000)"),
    ("evaluate_images", int, "held-out scenes to evaluate on (default: 100)"),
    ("seed", int, "of weights and pictures (default: 0)"),
)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure the attention, a whole model or the pipeline, beside its peers",
        description="Check against the reference, then time all in turn; medians, and rows added "
        "to the results. Peers are those that are installed: transformers, openvino.",
    )
    subjects = bench.add_subparsers(required=True, metavar="SUBJECT")
    op = subjects.add_parser("op", help="implementations of the attention")
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
    launches.set_defaults(run=_bench_launches)
    for subject in (op, model, pipeline, launches):
        add = subject.add_argument
        add("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
        add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
        add("--seconds", type=float, default=60.0, help="to time each case for (default: 60)")
    for subject in (op, model, pipeline):
        add = subject.add_argument
        add("--results", type=Path, help="CSV file to add to (default: the project's)")
        add("--json", action="store_true", help="for programs")
    plot = subjects.add_parser("plot", help="the newest measurements as bars")
    plot.add_argument("picture", metavar="FILE", type=Path, help=".svg, .png or .pdf")
    plot.add_argument("--results", type=Path, help="CSV file to read (default: the project's)")
    plot.set_defaults(run=_bench_plot)
    for name, subject in (("op", op), ("model", model), ("pipeline", pipeline)):
        subject.set_defaults(run=_bench, subject=name)


def _label(**options: Any) -> int:
    from jobs.label import label
    from jobs.label_options import LabelOptions

    return label(LabelOptions(**options))


def _train(resume: bool, **options: Any) -> int:
    from jobs.train import TrainOptions, train

    score = train(TrainOptions(**options), resume)
    print(f"AP {score['AP']:.4f} on the validation set")
    return 0


def _report(output: str, json: bool) -> int:
    from jobs.report import as_text, last_report

    report = last_report(output)
    print(_as_json(report) if json else printable(as_text(report)))
    return 0


def _query(output: str, sql: str) -> int:
    import duckdb

    from jobs.query import query

    duckdb.from_arrow(query(output, sql)).show(max_rows=200)
    return 0


def _bench(
    subject: str,
    precision: str,
    device: str,
    seconds: float,
    results: Path | None,
    json: bool,
    **own: Any,
) -> int:
    from jobs.bench import SUBJECTS, BenchOptions

    SUBJECTS[subject](BenchOptions(precision, device, seconds, results, json), **own)
    return 0


def _bench_launches(device: str, precision: str, seconds: float, table: Path | None) -> int:
    from jobs.bench import launches

    print(launches(device, precision, seconds, table))
    return 0


def _bench_plot(picture: Path, results: Path | None) -> int:
    from jobs.bench import plot

    plot(picture, results)
    return 0


def _models() -> int:
    from model.deformable_detr import DeformableDetr
    from model.zoo import MODELS, PACKAGED

    for named in MODELS.values():
        net = DeformableDetr(named.config())
        millions = sum(p.numel() for p in net.parameters()) / 1e6
        size = f"{millions:5.1f} M parameters {named.gmacs:6.1f} GMACs"
        weights = "packaged" if named.weights == str(PACKAGED) else named.weights
        print(f"{named.name:<42} {size}  weights: {weights}")
    return 0


def _as_json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1)


if __name__ == "__main__":
    sys.exit(main())
