"""One writer per OUTPUT: a lock file with a lease, which is taken by a conditional write.

The file names its holder and the time at which the lease ends. It is created only if it does not
exist (`If-None-Match` on S3, an exclusive create locally). A store may ignore the condition, so the
lock is read before and after the write. Only on such a store can two runs that start in the same
instant both write; the later write is valid. The lease of a dead holder ends by itself, and the
next run then takes the lock over. A holder has lost the lock if it finds another name in the file,
or if it was paused for longer than its lease. It must not publish then.

A holder that was paused may wake up at any moment: it must neither write over the lock of its
successor nor delete it. Each change of the file is therefore conditional (conditional.py), and no
request for one is repeated when the lease has ended.

The clocks of two machines differ and jump. A holder is therefore considered alive if it renews its
lease. A holder whose lease seems to have ended is watched for a while before it is considered dead.
A lease that is too long to watch is not taken over until the user deletes the file. The lock of a
local OUTPUT also says which process holds it: where that process ran on this machine and has ended,
its lock is taken over at once.
"""

import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, fields

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.clock import monotonic_seconds
from pipeline.storage.conditional import remove_if, replace_if
from pipeline.storage.environment import number_of_variable
from pipeline.storage.errors import OutputError
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import (
    CONFLICTS,
    InputError,
    create_whole,
    join,
    open_location,
    read_object,
)
from pipeline.storage.limits import reached_limit
from pipeline.storage.process_identity import has_ended, identity_of_process
from pipeline.storage.retries import repeat_while
from pipeline.storage.urls import mask

log = logging.getLogger(__name__)

LEASE_SECONDS = number_of_variable("DETR_BATCH_LEASE_SECONDS", 60)
MOST_LEASE_SECONDS = 86_400.0
RENEWALS = 4  # number of renewals per lease
MOST_WATCHED_SECONDS = 600.0  # a command that waits longer than this seems to hang
LOOK_SECONDS = 0.2  # pause between two reads of the lock of a holder that may be dead
# Pause before the lock is read again. If two runs write at the same time, the later write is valid.
SETTLE_SECONDS = 0.2
# The lock file of versions before 0.2. They created it empty and wrote it afterwards, so that a run
# that was killed in between left an empty file.
OLD_NAME = "_lock.json"
REPEAT = "Run the same command again"  # the advice to a run that lost its lock


class LockLost(OutputError):
    """This run no longer holds the lock, because it was paused or another run took it over."""


@dataclass(frozen=True)
class Lease:
    """The content of a lock file."""

    token: str  # random id of the holder
    holder: str  # "host:pid", for people
    lease_seconds: float
    expires_at: float  # Unix time on the holder's clock
    process: str = ""  # see process_identity.py; "" if it is not known, as before 0.2


_FIELDS = tuple(field.name for field in fields(Lease))


def lease_of_bytes(data: bytes) -> Lease | None:
    """The lease in the bytes of a lock file; None if the bytes are not a valid lease."""
    try:
        document = json.loads(data)
        lease = Lease(**{name: document[name] for name in _FIELDS if name in document})
        texts = lease.token, lease.holder, lease.process
        numbers = lease.lease_seconds, lease.expires_at
        whole = (
            all(isinstance(text, str) for text in texts)
            and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            and 0 < lease.lease_seconds <= MOST_LEASE_SECONDS
        )
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    return lease if whole else None


class OutputLock:
    """Locks OUTPUT while the `with` block runs. A thread renews the lease.

    Raises InputError if `lease_seconds` is not between 0 and a day.
    """

    def __init__(self, output: str, name: str, lease_seconds: float = LEASE_SECONDS):
        if not 0 < lease_seconds <= MOST_LEASE_SECONDS:
            raise InputError(
                f"DETR_BATCH_LEASE_SECONDS {lease_seconds:g}: give more than 0, and a day "
                f"({MOST_LEASE_SECONDS:.0f}) at most"
            )
        self.lease_seconds = lease_seconds
        self.token = uuid.uuid4().hex
        self.fs, self.path = open_location(join(output, name), "OUTPUT")
        self.output, self.name = output, name
        self._made: list[str] = []
        self._requested = False  # whether a request to write the lock was made
        self._renewed = monotonic_seconds()
        self._failure: Exception | None = None  # why the last renewal failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    def __enter__(self) -> "OutputLock":
        """Take the lock and start the thread that renews the lease.

        Raises InputError, which names the holder, if another run has a lease that has not ended.
        Raises OutputError if the lock file is damaged.
        """
        try:
            with explain_errors("OUTPUT", self.output):
                self._take()
            time.sleep(SETTLE_SECONDS)
            self.check()
        except BaseException:
            self._release()
            raise
        self._thread.start()
        return self

    def _take(self) -> None:
        holder = self._read()
        if isinstance(self.fs, LocalFileSystem):
            self._made = _make_folders(os.path.dirname(self.path))
        for _ in range(CONFLICTS):
            if self._create() if holder is None else self._take_over(holder):
                return
            holder = self._read()
            if holder is not None and holder.token == self.token:
                return  # the response to a request was lost, and the request was repeated
        raise TimeoutError(f"{self._place()} is written by others, again and again")

    def _create(self) -> bool:
        self._requested, self._renewed = True, monotonic_seconds()
        return create_whole(self.fs, self.path, self._content())

    def _take_over(self, holder: Lease) -> bool:
        """Replace the lock of a dead holder. Raises InputError if the holder is alive."""
        if self._lives(holder):
            raise InputError(
                f"{mask(self.output)} is being written by {holder.holder} (its lease ends "
                f"{holder.lease_seconds:.0f} s after it dies). Wait for it, or end it first."
            )
        self._requested, self._renewed = True, monotonic_seconds()
        return replace_if(
            self.fs, self.path, lambda data: self._parse(data) == holder, self._content()
        )

    def _lives(self, holder: Lease) -> bool:
        """Whether the holder of the lease is alive.

        A process of this machine that has ended is dead. Else, if the clocks agree, the end time of
        the lease decides. Otherwise the holder is watched for a renewal. Raises InputError if
        renewals are too rare to wait for one.
        """
        if isinstance(self.fs, LocalFileSystem) and has_ended(holder.process):
            return False
        lease = holder.lease_seconds
        remaining = holder.expires_at - time.time()
        if 0 < remaining <= lease:
            return True
        # Either the lease has ended or the holder's clock is behind ours (`remaining` <= 0), or the
        # holder's clock is ahead of ours by an unknown time.
        watch = lease * 1.5 / RENEWALS if remaining <= 0 else lease
        if watch > MOST_WATCHED_SECONDS:
            raise InputError(
                f"{self._place()} is of {holder.holder}, and only in {watch:.0f} s would it tell "
                "whether that command still runs: wait for it, or delete the file if it has ended"
            )
        log.warning(
            "%s is locked by %s, whose lease has ended: watching for %.0f s whether it lives",
            *(mask(self.output), holder.holder, watch),
        )
        until = monotonic_seconds() + watch
        while monotonic_seconds() < until:
            time.sleep(LOOK_SECONDS)
            seen = self._read()
            if seen != holder:
                return seen is not None
        return False

    def leave(self, content: bytes) -> None:
        """Release the lock, but keep its file and replace its content by `content`.

        Raises LockLost if another run has taken the lock over.
        """
        self._stop.set()
        self._thread.join()
        if not replace_if(self.fs, self.path, self._is_own, content):
            raise LockLost(f"{mask(self.output)} was taken over by another run. {REPEAT}")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._release()

    def _release(self) -> None:
        """Delete the lock if it is of this run, and the folders that this run made and left empty.

        Errors are only logged, so that they do not replace the result of the run.
        """
        path = mask(self.path)
        try:
            with repeat_while(self._is_in_time):
                if self._requested and self._is_in_time():
                    remove_if(self.fs, self.path, self._may_change)
        except OutputError as error:
            log.warning("%s", error)
        except Exception as error:
            reason = type(error).__name__
            log.warning("the lock %s stays until its lease ends (%s)", path, reason)
        for folder in self._made:  # a run that wrote nothing leaves no folders behind
            try:
                os.rmdir(folder)
            except OSError:  # the folder has files, or is gone
                break

    def check(self) -> None:
        """Raise LockLost unless this run still holds the lock.

        Call it before anything becomes visible to users. Raises OutputError if the lock file is
        damaged.
        """
        holder = self._read()
        if holder is None or holder.token != self.token:
            other = holder.holder if holder else "another run"
            raise LockLost(f"{mask(self.output)} was taken over by {other}. {REPEAT}")
        if not self._is_in_time():
            raise LockLost(
                f"the lease of {mask(self.output)} ended, as it was not renewed for "
                f"{monotonic_seconds() - self._renewed:.0f} s{self._why_not_renewed()}. {REPEAT}"
            )

    def _why_not_renewed(self) -> str:
        if self._failure is None:
            return ""
        return f" ({reached_limit(self._failure) or mask(str(self._failure))})"

    def _content(self) -> bytes:
        holder = f"{socket.gethostname()}:{os.getpid()}"
        ends = time.time() + self.lease_seconds
        lease = Lease(self.token, holder, self.lease_seconds, ends, identity_of_process())
        return json.dumps(asdict(lease)).encode()

    def _read(self) -> Lease | None:
        """The lease in the lock file; None if there is no file. OutputError if it is damaged."""
        self.fs.invalidate_cache()
        try:
            data = read_object(self.fs, self.path)
        except FileNotFoundError:
            return None
        return self._parse(data)

    def _parse(self, data: bytes) -> Lease:
        """The lease in the bytes of the lock file. OutputError if they are damaged."""
        if not data and self.name == OLD_NAME:  # the holder died or is about to write the file
            return Lease("", "a run that died while it took the lock", self.lease_seconds, 0.0)
        lease = lease_of_bytes(data)
        if lease is None:
            raise OutputError(
                f"{self._place()} is damaged: delete it if no other command writes this OUTPUT"
            )
        return lease

    def _place(self) -> str:
        return mask(join(self.output, self.name))

    def _is_own(self, data: bytes) -> bool:
        return self._parse(data).token == self.token

    def _is_in_time(self) -> bool:
        """Whether the lease lasts. If not, another run may be taking the lock over."""
        return monotonic_seconds() - self._renewed <= self.lease_seconds

    def _may_change(self, data: bytes) -> bool:
        """Whether the lock in `data` is of this run, and still is at this moment."""
        return self._is_own(data) and self._is_in_time()

    def _may_renew(self) -> bool:
        return self._is_in_time() and not self._stop.is_set()

    def _renew(self) -> None:
        while not self._stop.wait(self.lease_seconds / RENEWALS):
            began = monotonic_seconds()
            try:
                with repeat_while(self._may_renew):
                    if not replace_if(self.fs, self.path, self._may_change, self._content()):
                        return  # the lock is lost; `check` raises before anything is published
                self._renewed, self._failure = began, None
            except Exception as error:  # the store may answer again before the lease ends
                self._failure = error
                log.warning("the lease of %s was not renewed: %s", mask(self.path), error)
            if not self._is_in_time():
                return


def _make_folders(path: str) -> list[str]:
    """Create a local folder and its parents. Returns the new folders, innermost first."""
    new_folders = []
    while not os.path.exists(path):
        new_folders.append(path)
        path = os.path.dirname(path)
    for folder in reversed(new_folders):
        os.makedirs(folder, exist_ok=True)
    return new_folders
