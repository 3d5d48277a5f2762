"""`detr-batch train`."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train on rendered scenes, or fine-tune on a dataset in COCO's format",
        description="Train on rendered scenes; with --images and --annotations on a dataset in "
        "COCO's format, whose classes get new heads. OUTPUT gets last.pt, to go on from, and "
        "model.safetensors, for label --weights.",
    )
    option = train.add_argument
    option("output", metavar="OUTPUT", type=Path, help="folder for checkpoints and weights")
    option("--model", default="shapes-tiny")
    option("--weights", default="random", help="where to start (default: random), as in label")
    option("--images", type=Path, help="folder of training pictures; none: rendered scenes")
    option("--annotations", type=Path, help="COCO annotation file of --images")
    option("--validation-images", type=Path, help="to evaluate on (default: --images)")
    option("--validation-annotations", type=Path, help="of those (default: --annotations)")
    for name, kind, meaning in _NUMBERS:
        option(f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=meaning)
    option("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    option("--device", default="cpu")
    option("--resume", action="store_true", help="go on from OUTPUT/last.pt")
    train.set_defaults(run=_train, again="; --resume goes on from the last evaluation")


_NUMBERS: tuple[tuple[str, type, str], ...] = (
    ("steps", int, "batches (default: 14000)"),
    ("batch_size", int, "pictures (default: 4)"),
    ("learning_rate", float, "highest (default: 4e-4 from random weights, else 5e-5)"),
    ("evaluate_every", int, "steps between evaluations and checkpoints (default: 1000)"),
    ("evaluate_images", int, "held-out scenes to evaluate on (default: 100)"),
    ("seed", int, "of weights and pictures (default: 0)"),
)


def _train(resume: bool, **options: Any) -> int:
    from jobs.train.train import TrainOptions, train

    score = train(TrainOptions(**options), resume)
    print(f"AP {score['AP']:.4f} on the validation set")
    return 0
