"""How much a scope may store: its files, those that batches make for it among them."""

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from jobs.serve.batches.files import PREFIX, Files
from jobs.serve.batches.store import time_of_id
from jobs.serve.protocol.errors import ApiError

STORAGE_LIMIT = "storage_limit_exceeded"
MOST_FILES = 2000  # of a scope: each upload lists them
# After which a content without its document is none that still comes: its server was killed.
ORPHAN_SECONDS = 48 * 3600.0


class Room:
    """Refuses what is too much for a scope. For the threads of one process.

    What several servers store at the same moment may exceed it by that.
    """

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._coming: Counter[str] = Counter()  # bytes that are being stored, by scope

    @contextmanager
    def taken(self, files: Files, size: int) -> Iterator[None]:
        """Take room for a file of `size` bytes, which is stored in the block.

        Raises ApiError with status 403 if there is none.
        """
        with self._lock:
            self._coming[files.scope] += size
            coming = self._coming[files.scope]
        try:
            sizes = remove_orphans(files)
            used = bytes_of(sizes)
            if len(sizes) >= MOST_FILES:
                raise _refusal(f"There are {len(sizes)} files, and {MOST_FILES} are allowed")
            if used + coming > self._most_bytes:
                text = f"The files would have {used + coming} bytes"
                raise _refusal(f"{text}, and {self._most_bytes} are allowed")
            yield
        finally:
            with self._lock:
                self._coming[files.scope] -= size
                self._coming += Counter()  # leaves out what is 0


def remove_orphans(files: Files) -> dict[str, dict[str, int]]:
    """Remove what servers left that were killed while a file came; the sizes of the other files."""
    kept = {}
    for file_id, sizes in files.sizes().items():
        is_old = time.time() - time_of_id(file_id, PREFIX) > ORPHAN_SECONDS
        if is_old and "file.json" not in sizes:
            files.delete(file_id)
        else:
            kept[file_id] = sizes
    return kept


def bytes_of(sizes: Mapping[str, Mapping[str, int]], without: Collection[str] = ()) -> int:
    """The bytes of all files but those with the ids in `without`."""
    return sum(sum(one.values()) for file_id, one in sizes.items() if file_id not in without)


def _refusal(text: str) -> ApiError:
    return ApiError(403, f"{text}: delete some.", STORAGE_LIMIT)
