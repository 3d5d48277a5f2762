"""How a budget ends a run: when labelling must stop, and what to say if nothing was labelled."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from jobs.accounting.budget import Budget
from jobs.accounting.tally import Tally
from jobs.label.publication import Published
from jobs.output import paths
from jobs.output.output_writer import OutputWriter
from pipeline.storage.errors import CommandFailed, InputError

# Seconds of publishing for each image, where no earlier run says it: an assumption, not measured.
# It gives a million images 100 s.
PUBLISH_SECONDS_PER_IMAGE = 1e-4


class RunClock:
    """The time that a budget leaves for the labelling of one run."""

    def __init__(self, budget: Budget, tally: Tally, past: Sequence[Mapping[str, Any]]):
        """`past` are the reports of earlier runs."""
        self._budget, self._tally = budget, tally
        self._publishing = publishing_seconds(past)

    def seconds_left(self) -> float:
        """Seconds until labelling must end, so that what is labelled can be published in time."""
        return self._budget.seconds_left(self._tally.images, self._publishing)

    def reason(self) -> str:
        """The limit that is reached first, as the user gave it."""
        return self._budget.reason()


def publishing_seconds(past: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of publishing for each image, from the reports of earlier runs."""
    known = [
        report["seconds_by_stage"]["publish"] / report["images"]
        for report in past
        if report.get("images") and "publish" in (report.get("seconds_by_stage") or {})
    ]
    # Of a small run most of it is the start of the tasks, which is counted for every run.
    return (
        min(median(known), 10 * PUBLISH_SECONDS_PER_IMAGE) if known else PUBLISH_SECONDS_PER_IMAGE
    )


def spent_before(budget: Budget, published: Mapping[str, int], left: int) -> Published | None:
    """What to report of a run that its budget does not let begin; None if it may begin.

    Raises InputError if the command has published nothing before.
    """
    if not budget.is_limited or budget.seconds_left() > 0:
        return None
    if not published:
        raise InputError(
            f"{budget.reason()} is spent before the first block, as publishing takes some seconds "
            "too: give more. Nothing was written"
        )
    return Published(ended=budget.reason(), left=left)


def refuse_without_progress(published: Published, writer: OutputWriter, run_id: str) -> None:
    """Raise an error if all that a command did was a run that ended before it labelled anything.

    With the same budget the next run would do no better. If nothing at all is staged, the run is
    removed, and the error is an InputError.
    """
    if not published.is_stuck or published.images:
        return
    if published.kept:
        raise CommandFailed(
            f"{published.ended} ended the run before its first block was done: give more. What "
            "earlier runs labelled is kept"
        )
    writer.drop_staging(run_id)
    writer.store.remove(writer.store.names(paths.run_folder(run_id)))
    raise InputError(
        f"{published.ended} is spent before the first block was done: give more. Nothing was "
        "published"
    )
