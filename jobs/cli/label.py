"""`detr-batch label`: label every image under INPUT that OUTPUT has no labels of."""

from typing import Any

from jobs.cli.options import add_command
from jobs.cli.process import begin_startup
from jobs.label.options import LabelOptions


def add(commands: Any) -> None:
    add_command(
        commands,
        "label",
        LabelOptions,
        _label,
        help="label every image under INPUT that OUTPUT does not hold yet",
        description="Label every image under INPUT that OUTPUT does not hold yet. Both are local "
        "paths or URLs (s3://bucket/prefix). The same command, run again, labels what is new; "
        "after a crash or Ctrl-C it finishes what was begun.",
        again="; the same command takes it up again",
    )


def _label(options: LabelOptions) -> int:
    from jobs.label.label import label

    return label(options, begin_startup())
