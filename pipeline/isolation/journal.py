"""A journal on the disk of the machine: the batches that a detector computed when it crashed.

Ray restarts a dead actor for ever and gives it the same block (2.60). The new process finds the
entry of the old one, processes the images of that batch one by one, and gives up on the image that
ends the process again.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from pipeline.storage.folders import make_private_folder

KEPT_SECONDS = 7 * 24 * 3600.0  # age at which entries that a killed run left behind are deleted
BEGUN, STOOD_STILL = b".", b"s"


class CrashJournal:
    """The journal of one command. Another command starts without entries, even for the same run.

    A batch that takes more than `seconds` seconds ends this process, because a call to a device
    cannot be interrupted in another way.
    """

    def __init__(self, session: str, seconds: float):
        self.seconds = seconds
        self._under_way: dict[str, float] = {}  # key -> monotonic time at which it began
        self.folder = Path(tempfile.gettempdir(), f"detr-batch-{os.getuid()}")
        self.session = session
        make_private_folder(self.folder)
        for path in self.folder.iterdir():
            try:
                if time.time() - path.lstat().st_mtime > KEPT_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # another detector deleted the entry
                continue
        threading.Thread(target=self._watch, daemon=True, name="watch").start()

    def begin(self, key: str) -> None:
        """Record that the computation of the batch `key` begins."""
        self._add(key, BEGUN)
        self._under_way[key] = time.monotonic()

    def end(self, key: str) -> None:
        """Delete the entry of the batch `key`, which was computed or has raised an error."""
        self._under_way.pop(key, None)
        self._path(key).unlink(missing_ok=True)

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self.seconds / 4))
            for key, began in list(self._under_way.items()):
                if time.monotonic() - began > self.seconds:
                    self._add(key, STOOD_STILL)
                    print(f"more than {self.seconds:g} s for a batch: ending", file=sys.stderr)
                    os._exit(1)

    def unfinished(self, key: str) -> int:
        """How many processes began the batch `key` and ended during it."""
        return self._read(key).count(BEGUN)

    def stood_still(self, key: str) -> bool:
        """Whether a process ended because the batch `key` exceeded the time limit."""
        return STOOD_STILL in self._read(key)

    def _path(self, key: str) -> Path:
        return self.folder / f"{self.session}-{key}"

    def _read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return b""

    def _add(self, key: str, sign: bytes) -> None:
        with self._path(key).open("ab") as file:
            file.write(sign)
