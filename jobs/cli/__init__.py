"""The command line: arguments in, exit codes out. Each file of this folder adds its commands."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from jobs.cli import bench, evaluation, exchange, label, models, outputs, submit, train, upkeep
from pipeline.storage.errors import InputError
from pipeline.storage.urls import mask, printable

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Mistakes of the user are one line on stderr and exit code 2."""
    arguments = vars(parser().parse_args(argv))
    command, again = arguments.pop("run"), arguments.pop("again", "")
    try:
        code = int(command(**arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (InputError, ValueError) as error:
        _say(error)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"detr-batch: interrupted{again}", file=sys.stderr)
        return EXIT_FAILED
    except SystemExit as end:
        if end.code != signal.SIGTERM:  # as Ray (2.60) ends a process that gets one
            raise
        print(f"detr-batch: ended{again}", file=sys.stderr)
        return EXIT_FAILED
    except ImportError as error:  # also of a name that an older Python does not have
        _say(
            f"this Python ({sys.version.split()[0]}) cannot run detr-batch: {error}. It takes "
            "Python 3.11 or newer with all packages that infra/Dockerfile installs"
        )
        return EXIT_BAD_INPUT
    except (RuntimeError, OSError) as error:
        _say(error)
        return EXIT_FAILED


def _say(error: Exception | str) -> None:
    print(f"detr-batch: {printable(mask(str(error)))}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Every command with its help."""
    top = argparse.ArgumentParser(
        prog="detr-batch", description="Label image lakes with Deformable DETR."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for room in (label, submit, outputs, evaluation, exchange, upkeep, train, bench, models):
        room.add(commands)
    return top
