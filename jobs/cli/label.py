"""`detr-batch label`."""

import argparse
import os
from typing import Any


def add(commands: Any) -> None:
    label = commands.add_parser(
        "label",
        help="label every image under INPUT that OUTPUT does not hold yet",
        description="Label every image under INPUT that OUTPUT does not hold yet. Both are local "
        "paths or URLs (s3://bucket/prefix). The same command, run again, labels what is new; "
        "after a crash or Ctrl-C it finishes what was begun.",
    )
    label.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        help="a Ray cluster (default: $RAY_ADDRESS, else a local one for this command alone)",
    )
    add_options(label)
    label.set_defaults(run=_label, again="; the same command takes it up again")


def _label(**options: Any) -> int:
    from jobs.accounting.startup import Startup, seconds_of_process
    from jobs.label.label import label
    from jobs.label.options import LabelOptions

    return label(LabelOptions(**options), Startup(imports=seconds_of_process()))


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `label` and `submit` have in common: the fields of LabelOptions, but for the address."""
    option = parser.add_argument
    option("input", metavar="INPUT", help="images, .tar shards, Parquet files, or a list of URLs")
    option("output", metavar="OUTPUT", help="folder for the tables")
    option("--model", default="deformable-detr", help="a name of `detr-batch models`")
    option("--weights", help="file, URL (with #sha256=... checked), hub id, or 'random'")
    option("--score-threshold", type=float, default=0.3, help="0 keeps the best 100 (default: 0.3)")
    option("--format", default="auto", choices=["auto", "images", "tar", "parquet", "urls"])
    option("--limit", type=int, help="label at most this many images")
    option("--batch-size", type=int, default=8, help="images in one forward pass (default: 8)")
    option("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    option("--device", default="auto", choices=["auto", "cpu", "cuda"])
    option("--num-gpus", default="1", help="detectors on GPUs, or a range like 2-8 (default: 1)")
    option("--detect-on", metavar="KEY=VALUE", help="label of the nodes of Ray that detect")
    option(
        "--prepare-on",
        metavar="KEY=VALUE",
        help="label of those that do all else (default: any without an accelerator, where there "
        "are such)",
    )
    option(
        "--max-failed-fraction",
        type=float,
        default=1.0,
        help="a larger share of failed images is exit code 3 (default: 1, so never)",
    )
    option("--instance-type", help="machines this runs on, for the report: see detr-batch prices")
    option("--cpu-instance-type", help="those without a GPU, where a cluster has both")
    option("--spot", action="store_true", help="they cost the spot price")
    option("--usd-per-hour", type=float, help="price of all that runs this, instead")
    option(
        "--no-page", dest="page", action="store_false", help="leave report.html out: 3 s of a CPU"
    )
    option(
        "--single-writer",
        action="store_true",
        help="nothing else writes OUTPUT meanwhile: for stores that cannot keep two runs apart",
    )
    option(
        "--keep-replaced",
        type=float,
        default=0.0,
        metavar="HOURS",
        help="let files that --relabel replaces stay so long, for readers that have them open",
    )
    option("--relabel", action="store_true", help="replace the labels that OUTPUT has of INPUT")
    option("--dry-run", action="store_true", help="print the plan; touch nothing")
