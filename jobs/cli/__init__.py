"""The command line: it parses arguments and returns exit codes. Each file adds its commands."""

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version

from jobs.cli import (
    bench,
    evaluation,
    export_import,
    label,
    models,
    outputs,
    process,
    runs_compact,
    serve,
    serve_keys,
    submit,
    train,
)
from jobs.cli.options import Parser
from model.errors import CheckpointError, CheckpointUnavailable, DamagedCheckpoint, UnknownName
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.limits import reached_limit
from pipeline.storage.urls import mask, printable

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2
DEBUG = "--debug"


class _Lines(logging.Formatter):
    """Formats warnings without secrets and terminal control characters, as a command has lines."""

    def __init__(self, as_line: Callable[[str], str]):
        super().__init__()
        self._as_line = as_line

    def format(self, record: logging.LogRecord) -> str:
        return self._as_line(printable(mask(super().format(record))))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. An error is one line on stderr; --debug adds the traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it, as some daemons do
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    process.was_created_for_command = argv is None
    words = list(sys.argv[1:] if argv is None else argv)
    if DEBUG in words:  # the user may give it behind the command too
        words = [DEBUG, *(word for word in words if word != DEBUG)]
    arguments = vars(parser().parse_args(words))
    command, again = arguments.pop("run"), arguments.pop("again", "")
    debug, as_line = arguments.pop("debug", False), arguments.pop("as_line", str)
    if logging.lastResort is not None:  # it prints warnings where nothing else handles them
        logging.lastResort.setFormatter(_Lines(as_line))
    try:
        code = int(command(**arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of stdout closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(as_line(f"detr-batch: interrupted{again}"), file=sys.stderr)
        return EXIT_FAILED
    except SystemExit as end:
        if end.code != signal.SIGTERM:  # the code with which Ray (2.60) exits at SIGTERM
            raise
        print(as_line(f"detr-batch: ended{again}"), file=sys.stderr)
        return EXIT_FAILED
    except Exception as error:
        if debug:
            print(printable(mask(traceback.format_exc())), end="", file=sys.stderr)
        hint = "" if debug or _is_explained(error) else f" ({DEBUG} shows where it happened)"
        line = f"detr-batch: {printable(mask(message_of(error)))}{hint}"
        print(as_line(line), file=sys.stderr)
        return exit_code_of(error)


def exit_code_of(error: Exception) -> int:
    """The exit code: 2 for refused arguments, 1 for all other errors, which schedulers retry."""
    passing = isinstance(error, CheckpointUnavailable | DamagedCheckpoint)
    refused = isinstance(error, InputError | UnknownName | CheckpointError)
    # The Python is too old to have a name, or a container image lacks a package.
    unfit = isinstance(error, ImportError) and reached_limit(error) is None
    return EXIT_BAD_INPUT if (refused and not passing) or unfit else EXIT_FAILED


def message_of(error: Exception) -> str:
    """The message for the user: one line, or all lines of an error type of ours."""
    if not _is_ours(error) and (limit := reached_limit(error)) is not None:
        return f"{limit}, then run the same command again"
    if isinstance(error, ImportError):
        return (
            f"this Python ({sys.version.split()[0]}) cannot run detr-batch: {error}. It takes "
            "Python 3.11 or newer with all packages that infra/Dockerfile installs"
        )
    if _is_ours(error) or isinstance(error, OSError):
        return str(error)
    first = (str(error).strip().splitlines() or ["no reason given"])[0]
    if _is_of_store(error):
        return f"a store cannot be reached: {first} Run the same command again when it can"
    return f"internal error: {type(error).__name__}: {first}"


def _is_explained(error: Exception) -> bool:
    """Whether the message of an error is enough: it is of a type of ours, or an ImportError.

    It is not enough if a run failed by a defect in our code or in a library.
    """
    if isinstance(error, CommandFailed) and error.__cause__ is not None:
        cause = getattr(error.__cause__, "cause", error.__cause__)  # Ray wraps the error of a task
        return _is_ours(cause) or isinstance(cause, OSError)
    if _is_ours(error) or isinstance(error, ImportError) or reached_limit(error) is not None:
        return True
    return _is_of_store(error)


def _is_of_store(error: BaseException) -> bool:
    """Whether the library of a store raised an error, after all attempts at a request."""
    from pipeline.storage.retries import is_transient  # the libraries would delay the start

    return is_transient(error)


def _is_ours(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in ("model", "pipeline", "jobs")


def parser() -> argparse.ArgumentParser:
    """Make the parser, with every command and its help."""
    top = Parser(prog="detr-batch", description="Label image lakes with Deformable DETR.")
    top.add_argument(
        DEBUG,
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error; before or after the command",
    )
    top.add_argument("--version", action="version", version=f"detr-batch {version('detr-batch')}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    rooms = (label, submit, serve, serve_keys, outputs, evaluation, export_import, runs_compact)
    for room in (*rooms, train, bench, models):
        room.add(commands)
    return top
