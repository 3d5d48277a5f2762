"""The lines that `label` prints for people on stderr."""

import sys
from datetime import datetime

from jobs.label.options import LabelOptions
from pipeline.storage.urls import mask


def print_line(text: str) -> None:
    """Print a line on stderr. In a log it begins with the time, as the clock of the machine is."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
        return
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    print(f"{now} {text}", file=sys.stderr, flush=True)


def print_start(options: LabelOptions) -> None:
    """Print what begins, which tells the runs apart that follow one another in a log."""
    if not sys.stderr.isatty():
        print_line(f"label {mask(options.input)} {mask(options.output)}")
