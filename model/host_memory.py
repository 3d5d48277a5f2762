"""How the C library hands out the memory that a detector on a CPU computes in."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for them: M_...
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let this process reuse what it frees; False where the C library cannot (it is not glibc).

    By default glibc gives tensors above some megabytes back to the system at once, and each new one
    costs a page fault for every 4 KiB: a tenth of the multi-scale model's time on a CPU. It is for
    processes that do little else than detect: what they held at their peak stays theirs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all(mallopt(name, KEPT_BYTES) == 1 for name in (TRIM_THRESHOLD, MMAP_THRESHOLD))
