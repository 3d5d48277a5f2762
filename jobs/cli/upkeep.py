"""`detr-batch runs` and `compact`: keep an OUTPUT tidy."""

import sys
from typing import Any

from jobs.cli.answers import show
from pipeline.storage.urls import printable


def add(commands: Any) -> None:
    runs = commands.add_parser(
        "runs",
        help="list the runs of an OUTPUT; show, delete or verify them",
        description="The runs that count, oldest first.",
    )
    option = runs.add_argument
    option("output", metavar="OUTPUT")
    what = runs.add_mutually_exclusive_group()
    what.add_argument("--show", metavar="RUN", dest="shown", help="all that is written down of one")
    what.add_argument("--delete", metavar="RUN", help="remove one's labels")
    what.add_argument(
        "--verify", action="store_true", help="read all files again: rows and checksums"
    )
    option("--yes", action="store_true", help="delete without asking")
    option("--json", action="store_true", help="for programs")
    runs.set_defaults(run=_runs)
    compact = commands.add_parser(
        "compact",
        help="make one run of few large files out of many small ones",
        description="Of the runs over each INPUT one: what the views latest_images and latest "
        "show. Readers through `query` see either the old files or the new; those of plain globs "
        "may see rows twice while it runs. Rows that later runs superseded are left out.",
    )
    compact.add_argument("output", metavar="OUTPUT")
    compact.add_argument(
        "--keep-replaced",
        type=float,
        default=0.0,
        metavar="HOURS",
        help="let the old files stay so long, for readers that have them open",
    )
    for command in (runs, compact):
        command.add_argument(
            "--single-writer",
            action="store_true",
            help="nothing else writes OUTPUT meanwhile: for stores that cannot keep two runs apart",
        )
    compact.set_defaults(run=_compact, again="; nothing was changed: the same command starts anew")


def _runs(
    output: str,
    shown: str | None,
    delete: str | None,
    verify: bool,
    yes: bool,
    json: bool,
    single_writer: bool,
) -> int:
    from jobs import runs

    if shown:
        show(runs.shown(output, shown), str, for_programs=True)
        return 0
    if delete:
        done = runs.delete(output, delete, lambda lost: yes or _agreed(lost), single_writer)
        print(printable(done or "nothing was deleted"))
        return 0 if done else 1
    if verify:
        problems = runs.verify(output)
        show(problems, runs.problems_as_text, json)
        return int(bool(problems))
    show(runs.listed(output), runs.as_text, json)
    return 0


def _agreed(lost: str) -> bool:
    if not sys.stdin.isatty():
        raise ValueError(f"--delete removes {lost}: nobody is there to be asked, so pass --yes")
    return input(printable(f"delete {lost}? [y/N] ")).strip().lower() in ("y", "yes")


def _compact(output: str, single_writer: bool, keep_replaced: float) -> int:
    from jobs.compact import compact

    done = compact(output, single_writer=single_writer, keep_replaced=keep_replaced)
    for one in done:
        print(
            f"{one.runs} runs are run {one.run_id} now: {one.images} images in {one.files} files "
            f"({one.files_before} before); {one.superseded} rows that later runs superseded are "
            "left out"
        )
    if not done:
        print("nothing to do: no INPUT has more than one run")
    return 0
