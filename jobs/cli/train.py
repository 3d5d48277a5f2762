"""`detr-batch train`: train a model, or fine-tune one."""

import argparse
from dataclasses import dataclass, field, fields
from typing import Any

from jobs.cli.options import add_command
from jobs.train.options import TrainOptions


@dataclass(frozen=True)
class TrainCommand(TrainOptions):
    """A training recipe, and whether to resume an earlier command."""

    resume: bool = field(
        default=False,
        metadata={"help": "go on from OUTPUT/last.pt, on the same data set if none is given"},
    )


_EXAMPLE = """\
To fine-tune the packaged model on images of your own, and to label with the result:

  detr-batch train ./trained --weights packaged --steps 2000 \\
      --images ./photos --annotations ./instances_train.json \\
      --validation-images ./photos-val --validation-annotations ./instances_val.json
  detr-batch label ./photos ./labels --model shapes-tiny --weights ./trained/model.safetensors

Annotations are COCO's: a JSON object with images (id, file_name), annotations (image_id,
category_id, bbox [x, y, width, height]) and categories (id, name). All is checked before the first
step. --weights random, the default, starts from nothing, which suits the rendered scenes; packaged
starts from the weights of shapes-tiny; --model deformable-detr --weights deformable-detr starts
from the published ones. The first line of a training says what it starts from.

Where the categories are those of the weights, name by name and id by id, the heads of classes are
kept. Else all classes get new heads, even those that the model knows: a few steps teach them
nothing, and such a model finds no box. The first line says which. A step of shapes-tiny takes 0.5
to 5 s on two idle cores, so try it first with --steps 50 --evaluate-every 10, and then take some
hundred steps or more.
"""


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "train",
        TrainCommand,
        _train,
        help="train on rendered scenes, or fine-tune on a dataset in COCO's format",
        description="Train on rendered scenes; with --images and --annotations on a dataset in\n"
        "COCO's format, whose classes get new heads where the weights have others. OUTPUT gets\n"
        "last.pt, to go on from, and model.safetensors, for label --weights.",
        again="; --resume goes on from OUTPUT/last.pt, where one was saved",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLE


def _train(command: TrainCommand) -> int:
    from jobs.train.train import describe_end, train

    recipe = TrainOptions(
        **{field.name: getattr(command, field.name) for field in fields(TrainOptions)}
    )
    score = train(recipe, command.resume)
    print(describe_end(recipe, score["AP"]))
    return 0
