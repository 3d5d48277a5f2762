"""One writer per OUTPUT: a lock file with a lease, taken by a conditional write.

The file names its holder and when its lease ends. It is created only where there is none
(`If-None-Match` on S3, an exclusive create locally). A store may ignore the condition, so the lock
is read before and after: only there can two that start in the same instant both write, and the
later one stands. A dead holder's lease ends by itself; then the next run takes the lock over. A
holder that finds another name in the file has lost it and must not publish.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from model.urls import mask
from pipeline.storage import InputError, explained, join, open_location, write_whole

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0  # four chances before the lease ends
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
        if holder or not _create(self.fs, self.path, self._content()):
            holder = holder or self._read()
            remaining = holder.get("expires_at", 0.0) - time.time()
            if remaining > 0:
                raise InputError(
                    f"{mask(self.output)} is being written by {holder.get('holder')} (its lease "
                    f"ends in {remaining:.0f} s unless renewed). Wait for it, or end it first."
                )
            write_whole(self.fs, self.path, self._content())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            if self._read().get("token") == self.token:
                self.fs.rm_file(self.path)
        except Exception:  # the run's own end matters more
            log.warning("the lock %s stays until its lease ends", mask(self.path), exc_info=True)
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

    def _content(self) -> bytes:
        document = {
            "token": self.token,
            "holder": f"{socket.gethostname()}:{os.getpid()}",
            "expires_at": time.time() + self.lease_seconds,
        }
        return json.dumps(document).encode()

    def _read(self) -> dict[str, Any]:
        self.fs.invalidate_cache()
        try:
            document: dict[str, Any] = json.loads(self.fs.cat_file(self.path))
        except FileNotFoundError:
            return {}
        except json.JSONDecodeError:  # its holder died, or waits, between creating and writing it
            return {"holder": "a run that died while it took the lock"}
        return document

    def _renew(self) -> None:
        while not self._stop.wait(min(RENEW_SECONDS, self.lease_seconds / 4)):
            try:
                if self._read().get("token") != self.token:
                    return  # lost: `check` will say so before anything is published
                write_whole(self.fs, self.path, self._content())
            except Exception as error:  # the store may be back before the lease ends
                log.warning("the lease of %s was not renewed: %s", mask(self.path), error)


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
        fs.pipe_file(path, content, mode="create")
    except FileExistsError:
        return False
    except OSError as error:  # what s3fs makes of botocore's error
        answer = getattr(error.__cause__, "response", {})
        if answer.get("Error", {}).get("Code") in CONFLICTS:
            return False
        raise
    return True
