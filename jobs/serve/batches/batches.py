"""Takes batches from their input to their answers, one at a time, oldest first.

What is done stands in the store, so that a batch goes on where it was when a server is killed. Of
several servers over one store, one has the claim of a batch: a lock with a lease, as OUTPUT has.
"""

import logging
import threading

from jobs.serve.batches.records import BatchError, Record, open_records
from jobs.serve.batches.run import Starter, starter
from jobs.serve.batches.settings import BatchSettings
from jobs.serve.batches.store import Store
from jobs.serve.batches.work import BatchWork, Stopped
from pipeline.storage.errors import CommandFailed, InputError, OutputError, StorageUnavailable
from pipeline.storage.lock import OutputLock
from pipeline.storage.protocols import is_local
from pipeline.storage.urls import mask

log = logging.getLogger(__name__)

LOOK_SECONDS, LOOK_SECONDS_REMOTE = 1.0, 5.0  # between two looks at the store
CLAIM = "claim.json"
MISTAKE = BatchError(
    code="internal_error", message="The server made a mistake; its log says which."
)


class Batches:
    """Works on the open batches of a store, in one thread."""

    def __init__(
        self,
        store: Store,
        settings: BatchSettings,
        start: Starter | None = None,
        look_seconds: float | None = None,
    ):
        """`start` starts the runs of `label`; None: as the settings say."""
        self._store, self._settings = store, settings
        self._start = start or starter(settings)
        usual = LOOK_SECONDS if is_local(store.url) else LOOK_SECONDS_REMOTE
        self._seconds = usual if look_seconds is None else look_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and its process of `label`. The next server takes the batch up."""
        self._stop.set()
        self._thread.join()

    def is_working(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                for record in open_records(self._store):
                    self._claim(record)
            except Stopped:
                return
            except StorageUnavailable as error:
                log.warning("batches wait: %s", mask(str(error)))
            self._stop.wait(self._seconds)

    def _wait(self, current: Record) -> None:
        """Wait for the next look at the run of the `current` batch, and end others that must end.

        Raises Stopped if this server ends.
        """
        if self._stop.wait(self._seconds):
            raise Stopped
        for record in open_records(self._store):
            if record.id != current.id and self._of(record).must_end():
                self._claim(record)

    def _of(self, record: Record) -> BatchWork:
        return BatchWork(self._store, self._settings, self._start, record, self._wait)

    def _claim(self, record: Record) -> None:
        """Take a batch to its end, unless another server does. Raises Stopped."""
        if record.ended() is not None:  # a server was killed before it took it off the open ones
            record.close()
            return
        work = self._of(record)
        try:
            with OutputLock(f"{self._store.url}/{record.folder}", CLAIM) as claim:
                work.advance(claim)
        except InputError as error:
            log.info("batch %s: %s", record.id, mask(str(error)))
        except (OutputError, CommandFailed) as error:
            log.warning("batch %s is tried again: %s", record.id, mask(str(error)))
        except (Stopped, StorageUnavailable):
            raise
        except Exception:
            log.exception("batch %s: a mistake of the server", record.id)
            work.fail([MISTAKE])
