"""`detr-batch submit`: run `label` as a job on a Ray cluster."""

from dataclasses import replace
from typing import Any

from jobs.boxes.pairs import read_files
from jobs.cli.options import add_command, words_of
from jobs.cli.printing import show
from jobs.label.options import LabelOptions
from jobs.submit.options import SubmitOptions


def add(commands: Any) -> None:
    add_command(
        commands,
        "submit",
        SubmitOptions,
        _submit,
        help="label as a job on a Ray cluster",
        description="Run `label` on a Ray cluster through its job server: the code is sent along, "
        "the log is shown, and the exit code is the job's own. The cluster's role reads INPUT and "
        "writes OUTPUT; its nodes need what infra/Dockerfile installs.",
        again="; the job goes on: see --follow, --status and --stop",
    )


def words_on_the_cluster(options: LabelOptions) -> list[str]:
    """The arguments of `label` in a job. There it joins the cluster on which the job runs.

    `--until 06:00` is of the clock of this machine, which may be in another zone. The files of
    --thresholds and --rename are of this machine too: the job gets what they hold.
    """
    until = options.until_with_zone()
    return words_of(replace(read_files(options), address="auto", until=until), LabelOptions)


def _submit(options: SubmitOptions) -> int:
    from jobs.submit import submit as jobs

    given = jobs.Submission(options, dict(options.env), words_on_the_cluster(options))
    if options.status:
        show(jobs.status(given), jobs.status_as_text, options.json)
        return 0
    if options.stop:
        print(jobs.stop(given))
        return 0
    return jobs.submit(given, options.wait, options.follow)
