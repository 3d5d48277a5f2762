"""One writer per OUTPUT: a lock file with a lease, taken by a conditional write.

The file names its holder and when its lease ends. It is created only where there is none
(`If-None-Match` on S3, an exclusive create locally). A store may ignore the condition, so the lock
is read before and after: only there can two that start in the same instant both write, and the
later one stands. A dead holder's lease ends by itself; then the next run takes the lock over. A
holder that finds another name in the file, or that stood still for longer than its lease, has lost
it and must not publish.

Clocks of two machines differ and jump. Whether a holder lives is therefore seen by whether it
renews: one whose lease seems to have ended is watched for a while before it is taken for dead.
A lease that is too long to watch is left alone until the user says that its holder is dead.
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

from pipeline.storage.errors import OutputError
from pipeline.storage.files import (
    InputError,
    create_whole,
    explain_errors,
    join,
    open_location,
    read_object,
    write_whole,
)
from pipeline.storage.retries import retry
from pipeline.storage.urls import mask

log = logging.getLogger(__name__)

LEASE_SECONDS = float(os.environ.get("DETR_BATCH_LEASE_SECONDS", "60"))
MOST_LEASE_SECONDS = 86_400.0
RENEWALS = 4  # chances to renew before the lease ends
MOST_WATCHED_SECONDS = 600.0  # a command that waits for longer seems to hang
LOOK_SECONDS = 0.2  # between two looks at a holder that may be dead
SETTLE_SECONDS = 0.2  # of two that write at once the later one stands: both look again
# The lock of versions before 0.2, which created it empty and then wrote it: a kill left it so.
OLD_NAME = "_lock.json"


class LockLost(OutputError):
    """Another run took the lock over while this one was paused."""


@dataclass(frozen=True)
class Lease:
    """What a lock file says."""

    token: str
    holder: str  # for people
    lease_seconds: float
    expires_at: float  # Unix time, of the holder's clock


def lease_of_bytes(data: bytes) -> Lease | None:
    """What a lock file says; None where no holder wrote it so."""
    try:
        document = json.loads(data)
        lease = Lease(*(document[field.name] for field in fields(Lease)))
        texts, numbers = (lease.token, lease.holder), (lease.lease_seconds, lease.expires_at)
        whole = (
            all(isinstance(text, str) for text in texts)
            and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            and 0 < lease.lease_seconds <= MOST_LEASE_SECONDS
        )
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    return lease if whole else None


class OutputLock:
    """Holds OUTPUT for as long as the `with` block runs, renewing the lease from a thread."""

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
        self._renewed = _now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    def __enter__(self) -> "OutputLock":
        """InputError, naming the holder, where another run has a lease that has not ended.

        OutputError where the lock file is damaged.
        """
        with explain_errors("OUTPUT", self.output):
            self._take()
        time.sleep(SETTLE_SECONDS)
        self.check()
        self._thread.start()
        return self

    def _take(self) -> None:
        holder = self._read()
        if isinstance(self.fs, LocalFileSystem):
            self._made = _make_folders(os.path.dirname(self.path))
        self._renewed = _now()
        if holder is None and create_whole(self.fs, self.path, self._content()):
            return
        holder = holder or self._read()
        if holder and holder.token == self.token:
            return  # the answer to the first request was lost, and it was repeated
        if holder and self._lives(holder):
            raise InputError(
                f"{mask(self.output)} is being written by {holder.holder} (its lease ends "
                f"{holder.lease_seconds:.0f} s after it dies). Wait for it, or end it first."
            )
        self._renewed = _now()
        write_whole(self.fs, self.path, self._content())

    def _lives(self, holder: Lease) -> bool:
        """Whether the lease goes on, by its word where our clocks agree, else by its renewals.

        InputError where these come too seldom to be waited for.
        """
        lease = holder.lease_seconds
        remaining = holder.expires_at - time.time()
        if 0 < remaining <= lease:
            return True
        # Ended, unless its clock is behind ours; or its clock is ahead, by an unknown time.
        watch = lease * 1.5 / RENEWALS if remaining <= 0 else lease
        if watch > MOST_WATCHED_SECONDS:
            raise InputError(
                f"{self._place()} is of {holder.holder}, and only in {watch:.0f} s would it tell "
                "whether that command still runs: wait for it, or delete the file if it has ended"
            )
        log.info("watching for %.0f s whether %s lives", watch, holder.holder)
        until = _now() + watch
        while _now() < until:
            time.sleep(LOOK_SECONDS)
            seen = self._read()
            if seen != holder:
                return seen is not None
        return False

    def leave(self, content: bytes) -> None:
        """Give the lock up, but leave its file behind, with this content."""
        self._stop.set()
        self._thread.join()
        write_whole(self.fs, self.path, content)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            if self._is_own(self._read()):
                retry(self.fs.rm_file, self.path)
        except OutputError as error:
            log.warning("%s", error)
        except Exception as error:  # the run's own end matters more
            place, why = mask(self.path), type(error).__name__
            log.warning("the lock %s stays until its lease ends (%s)", place, why)
        for folder in self._made:  # a run that wrote nothing leaves nothing
            if os.listdir(folder):
                break
            os.rmdir(folder)

    def check(self) -> None:
        """LockLost unless the lock is still this run's. Call before anything becomes visible.

        OutputError where its file is damaged.
        """
        holder = self._read()
        if not self._is_own(holder):
            other = holder.holder if holder else "another run"
            raise LockLost(f"{mask(self.output)} was taken over by {other}")
        if _now() - self._renewed > self.lease_seconds:
            raise LockLost(
                f"the lease of {mask(self.output)} ended, as it was not renewed for "
                f"{_now() - self._renewed:.0f} s: run the same command again"
            )

    def _content(self) -> bytes:
        holder = f"{socket.gethostname()}:{os.getpid()}"
        ends = time.time() + self.lease_seconds
        return json.dumps(asdict(Lease(self.token, holder, self.lease_seconds, ends))).encode()

    def _read(self) -> Lease | None:
        """What the lock file says; None where there is none. OutputError where it is damaged."""
        self.fs.invalidate_cache()
        try:
            data = read_object(self.fs, self.path)
        except FileNotFoundError:
            return None
        if not data and self.name == OLD_NAME:  # its holder died, or is just about to write it
            return Lease("", "a run that died while it took the lock", self.lease_seconds, 0.0)
        lease = lease_of_bytes(data)
        if lease is None:
            raise OutputError(
                f"{self._place()} is damaged: delete it if no other command writes this OUTPUT"
            )
        return lease

    def _place(self) -> str:
        return mask(join(self.output, self.name))

    def _is_own(self, holder: Lease | None) -> bool:
        return holder is not None and holder.token == self.token

    def _renew(self) -> None:
        while not self._stop.wait(self.lease_seconds / RENEWALS):
            began = _now()
            try:
                if not self._is_own(self._read()):
                    return  # lost: `check` will say so before anything is published
                if _now() - self._renewed > self.lease_seconds:
                    return  # this process stood still, and another may be taking the lock over
                write_whole(self.fs, self.path, self._content())
                self._renewed = began
            except Exception as error:  # the store may be back before the lease ends
                log.warning("the lease of %s was not renewed: %s", mask(self.path), error)


def _now() -> float:
    """Seconds of a clock that nobody sets; Linux's goes on while a machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _make_folders(path: str) -> list[str]:
    """Make a local folder and those above it; which were made, innermost first."""
    made = []
    while not os.path.exists(path):
        made.append(path)
        path = os.path.dirname(path)
    for folder in reversed(made):
        os.makedirs(folder, exist_ok=True)
    return made
