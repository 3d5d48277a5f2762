"""The execution of a planned run on Ray: label its images and stage the labels."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.exceptions import RayActorError, RayTaskError

from jobs.accounting.tally import Tally
from jobs.label.canaries.proof import Proof
from jobs.label.progress import show_progress
from pipeline.dataflow import FlowSettings, label_shards, read_back_staging
from pipeline.isolation.watchdog import STALL_SECONDS, end_when_stalled
from pipeline.plan.remaining import remaining_work
from pipeline.plan.shards import Shards
from pipeline.schema import Receipt
from pipeline.stages.publish import ReconcileError
from pipeline.storage.errors import CommandFailed, OutputError
from pipeline.storage.limits import reached_limit
from pipeline.storage.urls import mask

# Times longer that a flow of tiled images may deliver nothing: one detector has all tiles of an
# image. The published model takes an hour and more for 1,225 tiles (500 megapixels) on one core.
PATIENCE_FOR_TILES = 10


def label_images(
    shards: Shards,
    settings: FlowSettings,
    tally: Tally,
    left: Callable[[], float] | None = None,
    proof: Proof | None = None,
    files_first: bool = False,
) -> bool:
    """Label and stage the images that are not staged yet. Show progress, and add up in `tally`.

    `left` says how many seconds remain. Returns whether they were enough: if not, some images are
    not staged. `files_first` is for runs that may be ended: what is labelled of loose files is
    published then, and of an archive only the whole. Raises CanaryDeviation at the first block
    whose detector deviates, if the run has a `proof`.
    """
    before = read_back_staging(settings.staging, settings.layout.nodes)
    if proof is not None:
        proof.add(before.canaries)
    work, size = remaining_work(shards, before, files_first)
    tally.before = before.images
    if not work:
        return True
    receipts = Receipts(label_shards(work, settings))
    watched = end_when_stalled(receipts, longest_wait(settings), left)
    checked = watched if proof is None else proof.checked(watched)
    show_progress(checked, tally, already=before.images, encoded_bytes=size)
    return receipts.ended


def longest_wait(settings: FlowSettings) -> float:
    """The seconds after which a flow without a receipt is ended."""
    return STALL_SECONDS * (PATIENCE_FOR_TILES if settings.tiling else 1)


class Receipts:
    """The receipts of a flow, and whether it came to its end."""

    def __init__(self, receipts: Iterator[Receipt]):
        self._receipts = receipts
        self.ended = False

    def __iter__(self) -> Iterator[Receipt]:
        return self

    def __next__(self) -> Receipt:
        try:
            return next(self._receipts)
        except StopIteration:
            self.ended = True
            raise

    def close(self) -> None:
        """End the flow. A generator of receipts ends its execution on Ray."""
        close = getattr(self._receipts, "close", None)
        if close is not None:
            close()


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
