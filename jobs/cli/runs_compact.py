"""`detr-batch runs` and `compact`: list, delete, verify and merge the runs of an OUTPUT."""

import sys
from dataclasses import dataclass, field
from typing import Any

from jobs.cli.options import add_command
from jobs.cli.printing import show
from pipeline.storage.errors import InputError
from pipeline.storage.urls import printable

_SINGLE_WRITER = {
    "help": "nothing else writes OUTPUT meanwhile: for stores that cannot keep two runs apart"
}


@dataclass(frozen=True)
class RunsOptions:
    output: str = field(metadata={"positional": True, "help": "folder of the tables"})
    shown: str | None = field(
        default=None,
        metadata={
            "flag": "--show",
            "metavar": "RUN",
            "one_of": "what",
            "help": "all that is written down of one",
        },
    )
    delete: str | None = field(
        default=None, metadata={"metavar": "RUN", "one_of": "what", "help": "remove one's labels"}
    )
    verify: bool = field(
        default=False,
        metadata={"one_of": "what", "help": "read all files again: rows and checksums"},
    )
    yes: bool = field(default=False, metadata={"help": "delete without asking"})
    json: bool = field(default=False, metadata={"help": "for programs"})
    single_writer: bool = field(default=False, metadata=_SINGLE_WRITER)


@dataclass(frozen=True)
class CompactOptions:
    output: str = field(metadata={"positional": True, "help": "folder of the tables"})
    keep_replaced: float = field(
        default=0.0,
        metadata={
            "metavar": "HOURS",
            "help": "let the old files stay so long, for readers that have them open",
        },
    )
    single_writer: bool = field(default=False, metadata=_SINGLE_WRITER)


def add(commands: Any) -> None:
    add_command(
        commands,
        "runs",
        RunsOptions,
        _runs,
        help="list the runs of an OUTPUT; show, delete or verify them",
        description="The runs that count, oldest first.",
    )
    add_command(
        commands,
        "compact",
        CompactOptions,
        _compact,
        help="make one run of few large files out of many small ones",
        description="Of the runs over each INPUT one: what the views latest_images and latest "
        "show. Readers through `query` see either the old files or the new; those of plain globs "
        "may see rows twice while it runs. Rows that later runs superseded are left out.",
        again="; nothing was changed: the same command starts anew",
    )


def _runs(options: RunsOptions) -> int:
    from jobs import runs

    if options.shown is not None:
        show(runs.describe_run(options.output, options.shown), str, for_programs=True)
        return 0
    if options.delete is not None:
        done = runs.delete(
            options.output,
            options.delete,
            lambda lost: options.yes or _confirm_deletion(lost),
            options.single_writer,
        )
        print(printable(done or "nothing was deleted"))
        return 0 if done else 1
    if options.verify:
        problems = runs.verify(options.output)
        show(problems, runs.problems_as_text, options.json)
        return int(bool(problems))
    show(runs.list_runs(options.output), runs.as_text, options.json)
    return 0


def _confirm_deletion(lost: str) -> bool:
    """Ask the user on the terminal. Raises InputError if stdin is no terminal."""
    if not sys.stdin.isatty():
        raise InputError(f"--delete removes {lost}: nobody is there to be asked, so pass --yes")
    return input(printable(f"delete {lost}? [y/N] ")).strip().lower() in ("y", "yes")


def _compact(options: CompactOptions) -> int:
    from jobs.compact import compact

    done = compact(
        options.output, single_writer=options.single_writer, keep_replaced=options.keep_replaced
    )
    for one in done:
        print(
            f"{one.runs} runs are run {one.run_id} now: {one.images} images in {one.files} files "
            f"({one.files_before} before); {one.superseded} rows that later runs superseded are "
            "left out"
        )
    if not done:
        print("nothing to do: no INPUT has more than one run")
    return 0
