"""The command line: arguments in, exit codes out. Each file of this folder adds its commands."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from jobs.cli import bench, evaluation, exchange, label, models, outputs, submit, train, upkeep
from jobs.cli.options import Parser
from model.errors import CheckpointError, CheckpointUnavailable, DamagedCheckpoint, UnknownName
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.urls import mask, printable

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2
DEBUG = "--debug"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. What goes wrong is one line on stderr; --debug adds the traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    if DEBUG in words:  # also behind the command
        words = [DEBUG, *(word for word in words if word != DEBUG)]
    arguments = vars(parser().parse_args(words))
    command, again = arguments.pop("run"), arguments.pop("again", "")
    debug = arguments.pop("debug", False)
    try:
        code = int(command(**arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"detr-batch: interrupted{again}", file=sys.stderr)
        return EXIT_FAILED
    except SystemExit as end:
        if end.code != signal.SIGTERM:  # as Ray (2.60) ends a process that gets one
            raise
        print(f"detr-batch: ended{again}", file=sys.stderr)
        return EXIT_FAILED
    except Exception as error:
        if debug:
            print(printable(mask(traceback.format_exc())), end="", file=sys.stderr)
        hint = "" if debug or _is_explained(error) else f" ({DEBUG} shows where it happened)"
        print(f"detr-batch: {printable(mask(message_of(error)))}{hint}", file=sys.stderr)
        return exit_code_of(error)


def exit_code_of(error: Exception) -> int:
    """2 for arguments that are refused; 1 for all else, which schedulers try again."""
    passing = isinstance(error, CheckpointUnavailable | DamagedCheckpoint)
    refused = isinstance(error, InputError | UnknownName | CheckpointError)
    # Also names that an older Python does not have, or an image without a package.
    unfit = isinstance(error, ImportError)
    return EXIT_BAD_INPUT if (refused and not passing) or unfit else EXIT_FAILED


def message_of(error: Exception) -> str:
    """What went wrong, in a line, or in the lines that an error of ours has."""
    if isinstance(error, ImportError):
        return (
            f"this Python ({sys.version.split()[0]}) cannot run detr-batch: {error}. It takes "
            "Python 3.11 or newer with all packages that infra/Dockerfile installs"
        )
    if _is_ours(error) or isinstance(error, OSError):
        return str(error)
    first = (str(error).strip().splitlines() or ["no reason given"])[0]
    return f"internal error: {type(error).__name__}: {first}"


def _is_explained(error: Exception) -> bool:
    """Whether the line of an error says all: of a type of ours, or of the installation.

    Not where a run failed by a mistake in our code, or in a library.
    """
    if isinstance(error, CommandFailed) and error.__cause__ is not None:
        cause = getattr(error.__cause__, "cause", error.__cause__)  # what Ray wraps in a task's
        return _is_ours(cause) or isinstance(cause, OSError)
    return _is_ours(error) or isinstance(error, ImportError)


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in ("model", "pipeline", "jobs")


def parser() -> argparse.ArgumentParser:
    """Every command with its help."""
    top = Parser(prog="detr-batch", description="Label image lakes with Deformable DETR.")
    top.add_argument(
        DEBUG,
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error; before or after the command",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for room in (label, submit, outputs, evaluation, exchange, upkeep, train, bench, models):
        room.add(commands)
    return top
