"""`detr-batch submit`."""

import argparse
import os
from typing import Any

from jobs.cli.answers import show
from jobs.cli.label import add_options


def add(commands: Any) -> None:
    submit = commands.add_parser(
        "submit",
        help="label as a job on a Ray cluster",
        description="Run `label` on a Ray cluster through its job server: the code is sent along, "
        "the log is shown, and the exit code is the job's own. The cluster's role reads INPUT and "
        "writes OUTPUT; its nodes need what infra/Dockerfile installs.",
    )
    option = submit.add_argument
    option(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS"),
        help="the job server, http://head:8265 (default: $RAY_API_SERVER_ADDRESS)",
    )
    option(
        "--env",
        action="append",
        default=[],
        type=_variable,
        metavar="NAME=VALUE",
        help="a variable of the job's environment; no secrets",
    )
    what = submit.add_mutually_exclusive_group()
    what.add_argument("--no-wait", dest="wait", action="store_false", help="only start the job")
    what.add_argument(
        "--follow", action="store_true", help="follow the job over this OUTPUT, where one runs"
    )
    what.add_argument("--status", action="store_true", help="of the last job over this OUTPUT")
    what.add_argument("--stop", action="store_true", help="end the job over this OUTPUT")
    option("--json", action="store_true", help="--status for programs")
    add_options(submit)
    submit.set_defaults(run=_submit, again="; the job goes on: see --follow, --status and --stop")


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text}: give NAME=VALUE")
    return name, value


def _submit(
    env: list[tuple[str, str]],
    wait: bool,
    follow: bool,
    status: bool,
    stop: bool,
    json: bool,
    **options: Any,
) -> int:
    from jobs.label.options import LabelOptions
    from jobs.submit import submit as jobs

    given = jobs.Submission(LabelOptions(**options), dict(env))
    if status:
        show(jobs.status(given), jobs.status_as_text, json)
        return 0
    if stop:
        print(jobs.stop(given))
        return 0
    return jobs.submit(given, wait, follow)
