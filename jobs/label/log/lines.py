"""Lines of `label` and `serve` for people on stderr. In a log each begins with the time.

This is so of all of their lines: of errors and refused arguments (jobs/cli), and of warnings, too.
"""

import re
import sys
from datetime import datetime

from pipeline.storage.urls import mask

_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-][\d:]+ ")  # as `as_line` writes it


def as_line(text: str) -> str:
    """The text as a line of stderr: in a log with the time, as the clock of the machine is."""
    if sys.stderr.isatty():
        return text
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return f"{now} {text}"


def print_line(text: str) -> None:
    """Print a line on stderr."""
    print(as_line(text), file=sys.stderr, flush=True)


def print_start(source: str, output: str) -> None:
    """Print what begins, which tells the runs apart that follow one another in a log."""
    if not sys.stderr.isatty():
        print_line(f"label {mask(source)} {mask(output)}")


def without_time(line: str) -> str:
    """A line of a log as it is on a terminal."""
    return _TIME.sub("", line)
