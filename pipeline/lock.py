"""One writer per OUTPUT: a lock file with a lease, taken by a conditional write.

The file names its holder and when its lease ends. It is created only where there is none
(`If-None-Match` on S3, an exclusive create locally). A store may ignore the condition, so the lock
is read before and after: only there can two that start in the same instant both write, and the
later one stands. A dead holder's lease ends by itself; then the next run takes the lock over. A
holder that finds another name in the file, or that stood still for longer than its lease, has lost
it and must not publish.

Clocks of two machines differ and jump. Whether a holder lives is therefore seen by whether it
renews: one whose lease seems to have ended is watched for a while before it is taken for dead.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from model.urls import mask
from pipeline.retries import retried
from pipeline.storage import InputError, explained, join, open_location, read_object, write_whole

log = logging.getLogger(__name__)

LEASE_SECONDS = float(os.environ.get("DETR_BATCH_LEASE_SECONDS", "60"))
RENEWALS = 4  # chances to renew before the lease ends
LOOK_SECONDS = 0.2  # between two looks at a holder that may be dead
SETTLE_SECONDS = 0.2  # of two that write at once the later one stands: both look again
LOCK_NAME = "_lock.json"
CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")  # what S3 says to a second create


class LockLost(RuntimeError):
    """Another run took the lock over while this one was paused."""


class OutputLock:
    """Holds OUTPUT for as long as the `with` block runs, renewing the lease from a thread."""

    def __init__(self, output: str, lease_seconds: float = LEASE_SECONDS):
        self.lease_seconds = lease_seconds
        self.token = uuid.uuid4().hex
        self.fs, self.path = open_location(join(output, LOCK_NAME), "OUTPUT")
        self.output = output
        self._made: list[str] = []
        self._renewed = _now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    def __enter__(self) -> "OutputLock":
        """InputError, naming the holder, where another run has a lease that has not ended."""
        with explained("OUTPUT", self.output):
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
        if not holder and _create(self.fs, self.path, self._content()):
            return
        holder = holder or self._read()
        if holder.get("token") == self.token:
            return  # the answer to the first request was lost, and it was repeated
        if self._lives(holder):
            raise InputError(
                f"{mask(self.output)} is being written by {holder.get('holder')} (its lease ends "
                f"{self.lease_seconds:.0f} s after it dies). Wait for it, or end it first."
            )
        self._renewed = _now()
        write_whole(self.fs, self.path, self._content())

    def _lives(self, holder: dict[str, Any]) -> bool:
        """Whether the lease goes on, by its word where our clocks agree, else by its renewals."""
        lease = holder.get("lease_seconds", self.lease_seconds)
        remaining = holder.get("expires_at", 0.0) - time.time()
        if 0 < remaining <= lease:
            return True
        # Ended, unless its clock is behind ours; or its clock is ahead, by an unknown time.
        watch = lease * 1.5 / RENEWALS if remaining <= 0 else lease
        log.info("watching for %.0f s whether %s lives", watch, holder.get("holder"))
        until = _now() + watch
        while _now() < until:
            time.sleep(LOOK_SECONDS)
            seen = self._read()
            if seen != holder:
                return bool(seen)
        return False

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            if self._read().get("token") == self.token:
                retried(self.fs.rm_file, self.path)
        except Exception as error:  # the run's own end matters more
            place, why = mask(self.path), type(error).__name__
            log.warning("the lock %s stays until its lease ends (%s)", place, why)
        for folder in self._made:  # a run that wrote nothing leaves nothing
            if os.listdir(folder):
                break
            os.rmdir(folder)

    def check(self) -> None:
        """LockLost unless the lock is still this run's. Call before anything becomes visible."""
        holder = self._read()
        if holder.get("token") != self.token:
            other = holder.get("holder", "another run")
            raise LockLost(f"{mask(self.output)} was taken over by {other}")
        if _now() - self._renewed > self.lease_seconds:
            raise LockLost(
                f"the lease of {mask(self.output)} ended, as it was not renewed for "
                f"{_now() - self._renewed:.0f} s: run the same command again"
            )

    def _content(self) -> bytes:
        document = {
            "token": self.token,
            "holder": f"{socket.gethostname()}:{os.getpid()}",
            "lease_seconds": self.lease_seconds,
            "expires_at": time.time() + self.lease_seconds,
        }
        return json.dumps(document).encode()

    def _read(self) -> dict[str, Any]:
        self.fs.invalidate_cache()
        try:
            document: dict[str, Any] = json.loads(read_object(self.fs, self.path))
        except FileNotFoundError:
            return {}
        except json.JSONDecodeError:  # its holder died, or waits, between creating and writing it
            return {"holder": "a run that died while it took the lock"}
        return document

    def _renew(self) -> None:
        while not self._stop.wait(self.lease_seconds / RENEWALS):
            began = _now()
            try:
                if self._read().get("token") != self.token:
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


def _create(fs: AbstractFileSystem, path: str, content: bytes) -> bool:
    """Write `path` unless it exists; False where it does."""
    if isinstance(fs, LocalFileSystem):
        try:
            with open(path, "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True
    try:
        retried(fs.pipe_file, path, content, mode="create")
    except FileExistsError:
        return False
    except OSError as error:  # what s3fs makes of botocore's error
        answer = getattr(error.__cause__, "response", {})
        if answer.get("Error", {}).get("Code") in CONFLICTS:
            return False
        raise
    return True
