"""Settings of the C library's memory allocator for a detector on a CPU."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for reuse. Returns False if the C library is not glibc.

    By default glibc returns tensors above some megabytes to the system at once. Each new tensor
    then costs a page fault per 4 KiB, which takes a tenth of the multi-scale model's time on a CPU.
    This function is for processes that mainly detect, because they keep the memory of their peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all(mallopt(name, KEPT_BYTES) == 1 for name in (TRIM_THRESHOLD, MMAP_THRESHOLD))
