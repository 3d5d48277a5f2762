"""The steps of one batch: read its input, run `label`, write its answers."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from jobs.label.options import LabelOptions
from jobs.serve.batches.day import take_images
from jobs.serve.batches.files import Files
from jobs.serve.batches.input import IMAGES_FOLDER, LINES, LIST, WANTED, InputWriter
from jobs.serve.batches.lakes import INPUT, OUTPUT, is_lake
from jobs.serve.batches.lines import InvalidInput, Lines
from jobs.serve.batches.output import NoRoom, OutputFiles, Unanswered, Written
from jobs.serve.batches.progress import Progress, is_written, newest_run
from jobs.serve.batches.records import (
    Batch,
    BatchError,
    BatchErrors,
    BatchUsage,
    Ending,
    Record,
    RequestCounts,
    Validated,
    ended_as,
)
from jobs.serve.batches.room import STORAGE_LIMIT
from jobs.serve.batches.run import LabelRun, Starter, Variables
from jobs.serve.batches.settings import MOST_THRESHOLD, BatchSettings
from jobs.serve.batches.store import Store
from pipeline.storage.image_hosts import VARIABLE as HOSTS
from pipeline.storage.image_hosts import ImageHosts
from pipeline.storage.lock import OutputLock
from pipeline.storage.protocols import is_local

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 10.0  # at other batches, while answers are written
ATTEMPTS = 5  # runs of `label` that end with an error and get nothing done
EXIT_OK, EXIT_REFUSED, EXIT_FAILED_IMAGES = 0, 2, 3
MOST_BYTES, MOST_PIXELS = "DETR_BATCH_MAX_IMAGE_BYTES", "DETR_BATCH_MAX_PIXELS"
LABELS = "labels"  # OUTPUT of `label`, below the folder of the batch
EXPIRED = Unanswered("expired", "The completion window of the batch ended before.")
CANCELLED = Unanswered("cancelled", "The batch was cancelled before.")


class Stopped(Exception):
    """This server ends. The batch goes on with the next one."""


class BatchWork:
    """The work on one batch, by who has its claim."""

    def __init__(
        self,
        store: Store,
        settings: BatchSettings,
        start: Starter,
        record: Record,
        wait: Callable[[Record], None],
    ):
        """`wait` waits until the run is looked at again. It raises Stopped."""
        self._store, self._settings, self._start = store, settings, start
        self._record, self._wait = record, wait

    def advance(self, claim: OutputLock) -> bool:
        """Take the batch to its end. Returns False if its creation has not ended.

        Raises Stopped, LockLost if another server has taken the claim over, and what stores raise.
        """
        found = self._record.created()
        if found is None:  # it is being created, or who created it was killed
            return False
        batch, scope = found
        files = Files(self._store, scope)
        try:
            if self._reason_to_end(batch) is None:
                validated = self._record.validated() or self._validate(batch, files)
                self._label(batch, validated, claim)
        except InvalidInput as error:
            self.fail(error.errors)
            return True
        claim.check()
        try:
            self._finish(batch, files, claim)
        except NoRoom:
            text = "There is no room for the answers: delete files, and create the batch again."
            self.fail([BatchError(code=STORAGE_LIMIT, message=text)])
        return True

    def read_input(self, _: OutputLock) -> bool:
        """Read the input of a batch that waits for its turn. Returns as `advance`.

        One that is wrong ends. That of a lake has nothing to read, and is validated when its run
        begins.
        """
        found = self._record.created()
        if found is None:
            return False
        batch, scope = found
        if is_lake(batch.metadata) or self._record.validated() is not None:
            return True
        try:
            self._validate(batch, Files(self._store, scope))
        except InvalidInput as error:
            self.fail(error.errors)
        return True

    def must_end(self) -> bool:
        """Whether the batch is cancelled or expired."""
        found = self._record.created()
        return found is not None and self._reason_to_end(found[0]) is not None

    def fail(self, errors: list[BatchError]) -> None:
        """End the batch without answers."""
        batch = self._record.state()
        assert batch is not None
        self._end(ended_as(batch, "failed", errors=BatchErrors(data=errors)))

    def clear(self) -> None:
        """Remove what the run of a batch that has ended leaves, and take it off the open ones.

        Documents and answers stay.
        """
        folder = self._record.folder
        for name in (LIST, LINES, WANTED):
            self._store.remove(f"{folder}/{name}")
        for name in (IMAGES_FOLDER, LABELS):
            self._store.remove_folder(f"{folder}/{name}")
        self._record.close()

    def _reason_to_end(self, batch: Batch) -> Unanswered | None:
        """Why the batch must end now; None if it goes on."""
        if self._record.marked("cancel") is not None:
            return CANCELLED
        return EXPIRED if time.time() > batch.expires_at else None

    def _validate(self, batch: Batch, files: Files) -> Validated:
        """Read the input. Raises InvalidInput."""
        if is_lake(batch.metadata):
            validated = Validated(
                at=int(time.time()),
                images=None,
                threshold=self._settings.api.score_threshold,
                runs_before=newest_run(self._options(batch).output),
            )
        else:
            validated = self._read_input(batch, files)
        self._record.write_validated(validated)
        return validated

    def _read_input(self, batch: Batch, files: Files) -> Validated:
        settings = self._settings.api
        try:
            with (
                closing(files.open(batch.input_file_id)) as file,
                InputWriter(self._store, self._record.folder, settings) as writer,
            ):
                for line in Lines(file, batch.endpoint, self._settings.model, settings.max_images):
                    writer.add(line)
                writer.finish()
        except FileNotFoundError as error:
            text = f"The file {batch.input_file_id} was deleted before it was read."
            missing = BatchError(code="file_not_found", message=text, param="input_file_id")
            raise InvalidInput([missing]) from error
        allowance = self._record.allowance()
        if allowance and (refusal := take_images(allowance, self._record, writer.images)):
            raise InvalidInput([refusal])
        return Validated(
            at=int(time.time()),
            images=writer.images,
            bad=writer.bad,
            listed=writer.listed,
            threshold=settings.score_threshold if writer.threshold is None else writer.threshold,
        )

    def _options(self, batch: Batch, threshold: float = 0.0) -> LabelOptions:
        """The options of the run of the batch."""
        options = replace(self._settings.label, score_threshold=min(threshold, MOST_THRESHOLD))
        metadata = batch.metadata or {}
        if is_lake(metadata):
            return replace(options, input=metadata[INPUT], output=metadata[OUTPUT], page=True)
        return replace(
            options,
            input=self._store.url_of(f"{self._record.folder}/{LIST}"),
            output=self._store.url_of(f"{self._record.folder}/{LABELS}"),
            format="urls",
        )

    def _label(self, batch: Batch, validated: Validated, claim: OutputLock) -> None:
        """Run `label` until it is done, or until the batch must end.

        Raises InvalidInput if `label` refuses, or fails again and again.
        """
        has_nothing = validated.images is not None and not validated.listed
        if has_nothing or self._record.marked("labelled") is not None:
            return
        options = self._options(batch, validated.threshold)
        progress, failures, done = Progress(options.output), 0, 0
        while self._reason_to_end(batch) is None:
            run = self._start(options, self._variables(batch))
            code = self._follow(run, batch, claim, progress, validated)
            if code in (None, EXIT_OK, EXIT_FAILED_IMAGES):
                return
            log.warning("batch %s: label ended with %s: %s", batch.id, code, run.reason())
            counts, before = progress.counts(validated), done
            done = counts.completed + counts.failed
            failures = 0 if done > before else failures + 1
            if code == EXIT_REFUSED and is_written(options.output):
                failures = 0  # the run of a server that was killed has not ended yet
            elif code == EXIT_REFUSED or failures >= ATTEMPTS:
                raise InvalidInput([BatchError(code="label_failed", message=run.reason())])
            self._wait(self._record)

    def _variables(self, batch: Batch) -> Variables:
        """What bounds the run: what its list may name, and how large images may be.

        The list may name what the server allows, and the images beside the list. Lakes are what the
        operator has named, and have the limits of `label`.
        """
        api, own = self._settings.api, self._store.url_of(self._record.folder)
        hosts = api.hosts if is_local(own) else ImageHosts.of([*api.hosts.entries, own])
        variables = {HOSTS: hosts.as_variable()}
        if not is_lake(batch.metadata):
            variables |= {MOST_BYTES: str(api.max_image_bytes), MOST_PIXELS: str(api.max_pixels)}
        return variables

    def _follow(
        self,
        run: LabelRun,
        batch: Batch,
        claim: OutputLock,
        progress: Progress,
        validated: Validated,
    ) -> int | None:
        """Wait for the end of a run, and return its exit code. None if the batch must end."""
        written = RequestCounts()
        try:
            while (code := run.exit_code()) is None:
                self._wait(self._record)
                claim.check()
                if self._reason_to_end(batch) is not None:
                    run.stop()
                    return None
                if (counts := progress.counts(validated)) != written:
                    self._record.write_progress(counts)
                    written = counts
            return code
        except BaseException:
            run.leave()
            raise

    def _finish(self, batch: Batch, files: Files, claim: OutputLock) -> None:
        """Write the answers, and end the batch. Raises NoRoom."""
        unanswered = self._reason_to_end(batch)
        if unanswered is None:
            self._record.mark("labelled")
        batch = self._record.state() or batch
        written = self._write_answers(batch, files, unanswered, claim)
        counts = written.counts
        cost = self._settings.api.cost_of(counts.completed)
        status: Ending = "completed" if unanswered is None else unanswered.status
        self._end(
            ended_as(
                batch,
                status,
                output_file_id=written.output_file_id,
                error_file_id=written.error_file_id,
                request_counts=counts,
                usage=BatchUsage(images=counts.completed, cost_usd=cost),
            )
        )

    def _write_answers(
        self, batch: Batch, files: Files, unanswered: Unanswered | None, claim: OutputLock
    ) -> Written:
        validated, output = self._record.validated(), self._options(batch).output
        if validated is None:
            return Written(None, None, RequestCounts())
        if is_lake(batch.metadata):
            return Written(None, None, Progress(output).counts(validated))
        answers = OutputFiles(self._store, self._record.folder, self._settings.api, batch)
        looked = time.monotonic()

        def look_at_others() -> None:
            nonlocal looked
            if time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
                self._wait(self._record)
                claim.check()
                looked = time.monotonic()

        return answers.write(files, output, unanswered, look_at_others)

    def _end(self, batch: Batch) -> None:
        self._record.end(batch)
        self.clear()
