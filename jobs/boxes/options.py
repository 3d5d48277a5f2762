"""The options that choose boxes: those that `label` and `export` share, and those of others."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.storage.errors import InputError

# What commands and other tools call the least score of a box.
OTHER_SCORES = ("--score-threshold", "--min-score", "--threshold", "--confidence", "--conf")


@dataclass(frozen=True, kw_only=True)
class SuppressionOptions:
    """Which boxes suppress others."""

    nms: float | None = field(
        default=None,
        metadata={
            "metavar": "IOU",
            "help": "leave out a box whose IoU with a better box of its class is greater "
            "(non-maximum suppression, by torchvision's)",
        },
    )
    nms_across_classes: float | None = field(
        default=None,
        metadata={"metavar": "IOU", "help": "the same among the boxes of all classes"},
    )

    def check_suppression(self) -> None:
        """Raise InputError for values out of range."""
        for name in ("nms", "nms_across_classes"):
            iou = getattr(self, name)
            if iou is not None and not 0 <= iou < 1:
                raise InputError(f"{option_of(name)} {iou:g}: give an IoU of 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class BoxOptions(SuppressionOptions):
    """Which boxes are kept, and of which classes they are then."""

    classes: str | None = field(
        default=None,
        metadata={
            "metavar": "A,B",
            "help": "keep boxes of these classes alone, given by name or number (default: all)",
        },
    )
    thresholds: str | None = field(
        default=None,
        metadata={
            "metavar": "A=0.6,B=0.4",
            "help": "least scores of single classes, in place of the general one; or a FILE: "
            'JSON {"A": 0.6}, or lines `A,0.6`',
        },
    )
    rename: str | None = field(
        default=None,
        metadata={
            "metavar": "FILE",
            "help": 'new names of classes: JSON {"car": "vehicle"}, or lines `car,vehicle`; '
            "several classes may become one; or `car=vehicle,bus=vehicle` itself",
        },
    )
    min_size: float = field(
        default=0.0,
        metadata={
            "metavar": "PIXELS",
            "help": "leave out boxes whose shorter side is shorter, in pixels of the image as "
            "displayed",
        },
    )

    def check_boxes(self) -> None:
        """Raise InputError for values that are wrong for every model."""
        self.check_suppression()
        if self.min_size < 0:
            raise InputError(f"--min-size {self.min_size:g}: give 0 pixels or more")


def option_of(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def choosing_values(options: Mapping[str, Any]) -> dict[str, str | float]:
    """All recorded options that decide labels of a model and are not at their defaults, by field.

    Its weights and the threshold of all classes are not among them.
    """
    found = _box_values(options)
    for name in ("tile", "tile_overlap"):
        value = options.get(name)
        found |= {name: value} if value is not None else {}
    decode = options.get("decode", "cpu")  # versions before 0.2 had no such option
    return found | ({"decode": decode} if decode != "cpu" else {})


def label_words(options: Mapping[str, Any]) -> list[str]:
    """The words, for a shell, that give the options of `choosing_values`."""
    return _as_words(choosing_values(options))


def box_words(options: Mapping[str, Any]) -> list[str]:
    """The words of a command line, for a shell, that give the recorded options of BoxOptions."""
    return _as_words(_box_values(options))


def _box_values(options: Mapping[str, Any]) -> dict[str, str | float]:
    # Versions before 0.2 had no such options.
    given = {one.name: options.get(one.name, one.default) for one in fields(BoxOptions)}
    return {
        one.name: given[one.name]
        for one in fields(BoxOptions)
        if given[one.name] is not None and given[one.name] != one.default
    }


def _as_words(values: Mapping[str, str | float]) -> list[str]:
    pairs = ((option_of(name), shlex.quote(word_of(value))) for name, value in values.items())
    return [word for pair in pairs for word in pair]


def word_of(value: str | float) -> str:
    """A value as a word of a command line, which reads back to the same number."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
