"""The options of `detr-batch submit`: those of `label`, and those for the job."""

import argparse
from dataclasses import dataclass, field

from jobs.label.options import LabelOptions


def variable(text: str) -> tuple[str, str]:
    """Split NAME=VALUE into its name and its value."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text}: give NAME=VALUE")
    return name, value


@dataclass(frozen=True)
class SubmitOptions(LabelOptions):
    """The options of the command line: those of `label`, and those for the job."""

    address: str | None = field(
        default=None,
        metadata={
            "environment": "RAY_API_SERVER_ADDRESS",
            "help": "the job server, http://head:8265 (default: $RAY_API_SERVER_ADDRESS)",
        },
    )
    env: tuple[tuple[str, str], ...] = field(
        default=(),
        metadata={
            "parse": variable,
            "metavar": "NAME=VALUE",
            "help": "a variable of the job's environment; no secrets",
        },
    )
    wait: bool = field(default=True, metadata={"one_of": "what", "help": "only start the job"})
    follow: bool = field(
        default=False,
        metadata={"one_of": "what", "help": "follow the job over this OUTPUT, where one runs"},
    )
    status: bool = field(
        default=False, metadata={"one_of": "what", "help": "of the last job over this OUTPUT"}
    )
    stop: bool = field(
        default=False, metadata={"one_of": "what", "help": "end the job over this OUTPUT"}
    )
    json: bool = field(default=False, metadata={"help": "--status for programs"})
