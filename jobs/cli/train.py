"""`detr-batch train`: train a model, or fine-tune one."""

from dataclasses import dataclass, field, fields
from typing import Any

from jobs.cli.options import add_command
from jobs.train.options import TrainOptions


@dataclass(frozen=True)
class TrainCommand(TrainOptions):
    """A training recipe, and whether to resume an earlier command."""

    resume: bool = field(default=False, metadata={"help": "go on from OUTPUT/last.pt"})


def add(commands: Any) -> None:
    add_command(
        commands,
        "train",
        TrainCommand,
        _train,
        help="train on rendered scenes, or fine-tune on a dataset in COCO's format",
        description="Train on rendered scenes; with --images and --annotations on a dataset in "
        "COCO's format, whose classes get new heads. OUTPUT gets last.pt, to go on from, and "
        "model.safetensors, for label --weights.",
        again="; --resume goes on from the last evaluation",
    )


def _train(command: TrainCommand) -> int:
    from jobs.train.train import train

    recipe = TrainOptions(
        **{field.name: getattr(command, field.name) for field in fields(TrainOptions)}
    )
    score = train(recipe, command.resume)
    print(f"AP {score['AP']:.4f} on the validation set")
    return 0
