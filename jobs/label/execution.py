"""The execution of a planned run on Ray: label its images and stage the labels."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayActorError, RayTaskError

from jobs.accounting.tally import Tally
from jobs.label.canaries.proof import Proof
from jobs.label.progress import show_progress
from pipeline.dataflow import FlowSettings, label_shards, read_back_staging
from pipeline.isolation.watchdog import end_when_stalled
from pipeline.plan.remaining import remaining_work
from pipeline.plan.shards import Shards
from pipeline.stages.publish import ReconcileError
from pipeline.storage.errors import CommandFailed, OutputError
from pipeline.storage.limits import reached_limit
from pipeline.storage.urls import mask


def label_images(
    shards: Shards, settings: FlowSettings, tally: Tally, proof: Proof | None = None
) -> None:
    """Label and stage the images that are not staged yet. Show progress, and add up in `tally`.

    Raises CanaryDeviation at the first block whose detector deviates, if the run has a `proof`.
    """
    before = read_back_staging(settings.staging, settings.layout.nodes)
    if proof is not None:
        proof.check_all(before.canaries, is_final=False)
    work, size = remaining_work(shards, before)
    if work:
        receipts = end_when_stalled(label_shards(work, settings))
        receipts = receipts if proof is None else proof.checked(receipts)
        show_progress(receipts, tally, already=before.images, encoded_bytes=size)


@contextmanager
def explained_failures() -> Iterator[None]:
    """Convert the errors of storage and of workers to errors of one line that says what to do.

    OutputError, CommandFailed and ReconcileError have such a line. All other errors become
    CommandFailed.
    """
    try:
        yield
    except Exception as error:
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, OutputError | CommandFailed):  # raised in a worker
            raise type(cause)(reason_of(error)) from error
        if isinstance(error, OutputError | CommandFailed | ReconcileError):
            raise
        raise CommandFailed(
            f"the run failed: {reason_of(error)}. What is labelled is kept: run the same command "
            "again"
        ) from error


def reason_of(error: BaseException) -> str:
    """The message of an error, in one line.

    Ray puts pages before the message of a worker, and Ray Data (2.60) puts advice behind it.
    """
    if (limit := reached_limit(error)) is not None:
        return mask(limit)
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, RayActorError) and "creation task" in lines[0]:
        # The constructor of a stage raised an error. Ray keeps only the text of its traceback.
        return mask(re.sub(r"^[\w.]+: ", "", lines[-1].strip()))
    return mask(lines[-1] if isinstance(error, RayTaskError) else lines[0])
