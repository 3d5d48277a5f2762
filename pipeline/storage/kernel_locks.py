"""Exclusive locks of the kernel on open files. A lock ends with its process."""

import errno
import fcntl
import time

LOCK_SECONDS = 10.0  # the longest wait: commands hold these locks for milliseconds
LOCK_PAUSE = 0.02  # between two attempts
# What a file system says that has no such locks, or none on folders (NFS).
_NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def wait_for_lock(descriptor: int) -> bool:
    """Wait for the lock of an open file or folder, for LOCK_SECONDS at most. Whether it is had.

    True too where the file system has no locks.
    """
    until = time.monotonic() + LOCK_SECONDS
    while not _take_lock(descriptor):
        if time.monotonic() > until:
            return False
        time.sleep(LOCK_PAUSE)
    return True


def _take_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
