"""What the command line makes of words."""

from collections.abc import Sequence
from dataclasses import fields

from jobs.cli import parser
from jobs.label.options import LabelOptions


def label_options(words: Sequence[str]) -> LabelOptions:
    """The options of the command `label`, which is the first of the words."""
    given = vars(parser().parse_args(words))
    return LabelOptions(**{field.name: given[field.name] for field in fields(LabelOptions)})
