"""Takes batches from their input to their answers, one at a time. Scopes take turns.

Of a scope, the oldest batch comes first. The inputs of batches that wait are read meanwhile, so
that one that is wrong fails soon. What is done stands in the store, so that a batch goes on where
it was when a server is killed. Of several servers over one store, one has the claim of a batch: a
lock with a lease, as OUTPUT has.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain

from jobs.label.options import LabelOptions
from jobs.serve.batches.records import BatchError, Record, open_records
from jobs.serve.batches.run import LabelRun, Starter, Variables, starter
from jobs.serve.batches.settings import BatchSettings
from jobs.serve.batches.store import Store
from jobs.serve.batches.work import BatchWork, Stopped
from pipeline.storage.errors import CommandFailed, InputError, OutputError, StorageUnavailable
from pipeline.storage.limits import reached_limit
from pipeline.storage.lock import OutputLock
from pipeline.storage.protocols import is_local
from pipeline.storage.urls import mask

log = logging.getLogger(__name__)

LOOK_SECONDS, LOOK_SECONDS_REMOTE = 1.0, 5.0  # between two looks at the store
CLAIM = "claim.json"
# Of the inputs of a scope that are read before their turn; beyond it the others wait.
MOST_BYTES_READ = 256 << 20
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
        # The bytes of inputs that are read, of batches that wait for their turn, by their ids.
        self._inputs_read: dict[str, int] = {}
        self._run_began: dict[str, float] = {}  # when the last run of a scope began here
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
            has_worked = False
            try:
                has_worked = self._give_a_turn()
            except Stopped:
                return
            except StorageUnavailable as error:
                log.warning("batches wait: %s", mask(str(error)))
            if not has_worked:
                self._stop.wait(self._seconds)

    def _give_a_turn(self) -> bool:
        """Take a batch to its end, of the scope whose last run began the longest time ago.

        Returns False if no batch can be worked on now. Raises Stopped.
        """
        scopes: dict[str, list[Record]] = {}
        for record in open_records(self._store):
            scopes.setdefault(record.scope_folder, []).append(record)
        of_scopes = sorted(scopes.items(), key=lambda one: self._run_began.get(one[0], -math.inf))
        records = chain.from_iterable(oldest_first for _, oldest_first in of_scopes)
        return any(self._step(record, BatchWork.advance) for record in records)

    def _wait(self, current: Record) -> None:
        """Wait for the next look at the run of the `current` batch.

        Of others, end those that must end, and read the input of one that is new. If the store
        fails at that, the run goes on. Raises Stopped if this server ends.
        """
        if self._stop.wait(self._seconds):
            raise Stopped
        try:
            self._look_at_others(current)
        except StorageUnavailable as error:
            log.warning("other batches wait: %s", mask(str(error)))

    def _look_at_others(self, current: Record) -> None:
        records = [one for one in open_records(self._store) if one.id != current.id]
        waiting = {record.id for record in records}
        self._inputs_read = {k: size for k, size in self._inputs_read.items() if k in waiting}
        held = Counter[str]()  # bytes, by the folder of the scope
        for record in records:
            held[record.scope_folder] += self._inputs_read.get(record.id, 0)
        for record in records:
            if self._stop.is_set():
                raise Stopped
            if self._of(record).must_end():
                self._step(record, BatchWork.advance)
            elif record.id in self._inputs_read or held[record.scope_folder] > MOST_BYTES_READ:
                continue
            elif self._step(record, BatchWork.read_input):
                self._inputs_read[record.id] = sum(self._store.sizes(record.folder).values())
                return  # an input may take half a minute, and the run is looked at in between

    def _of(self, record: Record) -> BatchWork:
        def start(options: LabelOptions, variables: Variables) -> LabelRun:
            self._run_began[record.scope_folder] = time.monotonic()
            return self._start(options, variables)

        return BatchWork(self._store, self._settings, start, record, self._wait)

    def _step(self, record: Record, step: Callable[[BatchWork, OutputLock], bool]) -> bool:
        """Do a step of a batch, unless another server works on it, and return whether it is done.

        A store that fails is that of this batch: others may have another one. Raises Stopped.
        """
        work = self._of(record)
        try:
            if record.ended() is not None:  # a server was killed before it took it off
                work.clear()
                return True
            with OutputLock(f"{self._store.url}/{record.folder}", CLAIM) as claim:
                return step(work, claim)
        except InputError as error:
            log.info("batch %s: %s", record.id, mask(str(error)))
        except (OutputError, CommandFailed, StorageUnavailable) as error:
            log.warning("batch %s is tried again: %s", record.id, mask(str(error)))
        except Stopped:
            raise
        except Exception as error:
            if (limit := reached_limit(error)) is not None:
                log.warning("batch %s is tried again: %s", record.id, mask(limit))
                return False
            log.exception("batch %s: a mistake of the server", record.id)
            work.fail([MISTAKE])
        return False
