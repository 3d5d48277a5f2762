"""The right of one command to write OUTPUT.

The lock refuses a second command early. Only the log decides whose commit counts.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from jobs.output import paths
from jobs.output.catalog import Catalog
from jobs.output.documents import parse_json
from jobs.output.errors import CommitUnknown
from jobs.output.log import Reason
from jobs.output.log_writer import LogWriter
from jobs.output.manifest import Manifest
from jobs.output.run_ids import refuse_unset_clock
from jobs.output.store import OutputStore
from pipeline.stages.publish import PublishTarget
from pipeline.storage.errors import OutputError
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import InputError, join, open_location, remove_tree
from pipeline.storage.lock import LockLost, OutputLock
from pipeline.storage.retries import repeat_while

MOST_HOURS = 10_000  # the longest time for which replaced files are kept
# The lease in the lock file of versions before 0.2. These versions wait until it ends.
FOR_EVER = 1e12  # seconds
NEEDED = "detr-batch 0.2 or newer, as the format of this OUTPUT needs: upgrade this one"


def check_keep_replaced(hours: float) -> None:
    """Raise InputError for a time that replaced files cannot be kept for."""
    if not 0 <= hours <= MOST_HOURS:
        raise InputError(f"--keep-replaced {hours:g}: give 0 to {MOST_HOURS} hours")


def check_output_without_writing(output: str) -> None:
    """Raise InputError for an OUTPUT that no `OutputWriter` takes, as far as reading shows it."""
    refuse_unset_clock()
    store = OutputStore(output)
    store.refuse_read_only()
    store.refuse_links()


def staged_runs(names: Iterable[str], catalog: Catalog) -> list[str]:
    """Ids of runs with a plan among the `names` of staged files, oldest first.

    A command was killed before, or just after, it committed the run.
    """
    planned = {run_id for run_id in map(paths.run_of_plan_under_way, names) if run_id}
    gone = {name for name in planned if catalog.knows(name)}
    return sorted(planned - (gone - set(catalog.state.counting_runs())))


class OutputWriter:
    """The right to write OUTPUT. A command has it from reading the log until the `with` block ends.

    Raises InputError if another command has the right. Raises it too if the store cannot keep two
    writers apart, unless `single_writer` says that there is only one.
    """

    def __init__(self, output: str, single_writer: bool = False, keep_replaced: float = 0.0):
        """`keep_replaced` is the time in hours for which the files of replaced runs stay."""
        self.output, self.single_writer = output, single_writer
        self.keep_replaced = keep_replaced
        check_keep_replaced(keep_replaced)
        self.store = OutputStore(output)
        self.store.refuse_read_only()
        self.lock = OutputLock(output, paths.LOCK)
        self.old_lock: OutputLock | None = None

    def __enter__(self) -> Self:
        refuse_unset_clock()
        self.store.refuse_links()
        self.lock.__enter__()
        try:
            with explain_errors("OUTPUT", self.output):
                if not _shuts_out_old_versions(self.store):
                    self.old_lock = OutputLock(self.output, paths.OLD_LOCK).__enter__()
                self.log = LogWriter(self.store, adopt=self.old_lock is not None)
                self._read_staging()
                remains = self._abandoned or self.log.abandoned_files()
            if remains:
                self.begin_writing()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.old_lock is not None:
            self.old_lock.__exit__(kind, error, traceback)
        self.lock.__exit__(kind, error, traceback)

    def _read_staging(self) -> None:
        names = self.store.names(paths.STAGING)
        self.staged = staged_runs(names, self.catalog)
        folders = {name.split("/")[1] for name in names if name.count("/") > 1}
        self._abandoned = sorted(folders - set(self.staged))

    @property
    def token(self) -> str:
        """The token in the names of this writer's files. No other writer has the same."""
        return self.log.token

    @property
    def catalog(self) -> Catalog:
        """The catalog that this writer read, with the runs that it committed since."""
        return self.log.catalog

    def begin_writing(self) -> None:
        """Fence off all earlier writers. It has to be called before the first write.

        Also deletes the staging that they abandoned. Raises CommitLost if another writer began
        since OUTPUT was read.
        """
        if self.log.fenced:
            return
        with explain_errors("OUTPUT", self.output):
            if not self.single_writer:
                self.store.refuse_without_atomic_create()
            # This comes first, because versions before the log delete tables whose manifest they do
            # not see.
            if self.old_lock is not None:
                self.old_lock.check()
                self.old_lock.leave(json.dumps(_tombstone()).encode())
                self.old_lock = None
            self.log.fence()
            for name in self._abandoned:
                self.drop_staging(name)

    def check_lock(self) -> None:
        """Raise LockLost if another command took OUTPUT over: this one can commit nothing then."""
        self.lock.check()

    @contextmanager
    def explain_takeover(self) -> Iterator[None]:
        """Raise LockLost instead of other errors if another command has taken OUTPUT over.

        That command may have deleted files that this one needs, which is what the error would say.
        If the store does not answer, the error stays: nobody waits for the store once more.
        """
        try:
            yield
        except (LockLost, CommitUnknown):  # these explain themselves
            raise
        except Exception as error:
            try:
                with repeat_while(lambda: False):
                    self.check_lock()
            except OutputError:
                raise
            except Exception:  # stores raise many types
                raise error from error.__cause__
            raise

    def unfinished_runs(self) -> list[str]:
        """Ids of runs of killed commands that can be resumed, oldest first."""
        return [run_id for run_id in self.staged if not self.catalog.knows(run_id)]

    def drop_staging(self, run_id: str) -> None:
        """Delete the staging of a run."""
        self.begin_writing()
        fs, path = open_location(join(self.output, paths.staging(run_id)), "OUTPUT")
        remove_tree(fs, path)

    def publish_target(
        self, run_id: str, model: str, fingerprint: str, labels: Sequence[str]
    ) -> PublishTarget:
        """The target to which this writer publishes the tables of a run."""
        return PublishTarget(
            self.output,
            run_id,
            paths.part_template(run_id, self.token),
            join(self.output, paths.blocks(run_id)),
            model,
            fingerprint,
            tuple(labels),
        )

    def discard_tables(self, run_id: str) -> None:
        """Delete the tables that this writer wrote for a run that it will not commit."""
        template = paths.part_template(run_id, self.token)
        own = {template.partition("part-")[0].format(table=table) for table in paths.TABLES}
        self.store.remove(
            name for folder in own for name in self.store.names(folder) if self.token in name
        )

    def commit(
        self, run: Manifest | None, removes: Sequence[str] = (), reason: Reason = "replaced"
    ) -> None:
        """Commit as `LogWriter.commit`; files of replaced runs stay for `keep_replaced` hours."""
        self.begin_writing()
        self.check_lock()
        hours = 0.0 if reason == "deleted" else self.keep_replaced
        kept_until = time.time() + 3600 * hours if hours else 0.0
        self.log.commit(run, removes, reason, kept_until)


def _tombstone() -> dict[str, Any]:
    """A lock file that versions before 0.2 read as the lock of a running command."""
    return {
        "token": "0" * 32,
        "holder": NEEDED,
        "lease_seconds": FOR_EVER,
        "expires_at": FOR_EVER,
    }


def _shuts_out_old_versions(store: OutputStore) -> bool:
    try:
        return bool(parse_json(store.read(paths.OLD_LOCK)).get("holder") == NEEDED)
    except (FileNotFoundError, ValueError, AttributeError, RecursionError):
        return False
