"""What a detector was computing when its process ended: a note on its machine's disk.

Ray starts a dead actor anew for ever, with the same block (2.60). The new process finds the note of
the old one, takes those pictures one by one, and gives up on the one that ends it again.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

KEPT_SECONDS = 7 * 24 * 3600.0  # of notes that a killed run left behind
BEGUN, STOOD_STILL = b".", b"s"


class CrashJournal:
    """Notes of one command: another one, of the same run too, begins without any.

    What takes more than `seconds` ends this process: no call of a device can be interrupted
    otherwise.
    """

    def __init__(self, session: str, seconds: float):
        self.seconds = seconds
        self._under_way: dict[str, float] = {}  # when each was begun
        self.folder = Path(tempfile.gettempdir(), f"detr-batch-{os.getuid()}")
        self.session = session
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for path in self.folder.iterdir():
            try:
                if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # another detector tidies up as well
                continue
        threading.Thread(target=self._watch, daemon=True, name="watch").start()

    def begin(self, key: str) -> None:
        """What `key` names is about to be computed."""
        self._add(key, BEGUN)
        self._under_way[key] = time.monotonic()

    def end(self, key: str) -> None:
        """It was computed, or failed in an orderly way."""
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
        """How often it was begun by a process that ended."""
        return self._read(key).count(BEGUN)

    def stood_still(self, key: str) -> bool:
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
