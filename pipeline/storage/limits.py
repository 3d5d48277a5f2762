"""Limits of the machine at which a command ends: full disks, quotas, and limits of a process."""

import errno
import os
import re
import resource

_ADVICE = {
    errno.ENOSPC: "the disk is full: make room on it",
    errno.EDQUOT: "the quota of the disk is used up: delete files, or have it raised",
    errno.EFBIG: "a file would be larger than it may be: raise the limit (`ulimit -f unlimited`)",
    errno.EMFILE: "too many files are open: raise the limit (`ulimit -n 8192`)",
    errno.ENFILE: "all programs of this machine have too many files open: end some",
    errno.EROFS: "the disk can only be read: mount it for writing, or use another",
}
# Of many libraries only the text says what it was.
_TEXTS = {os.strerror(number): text for number, text in _ADVICE.items()}
_NO_TEMPORARY = "No usable temporary directory found"
FEWEST_OPEN_FILES = 256  # with 64 the processes of Ray die (Ray 2.60, 2 CPUs, 2026-11-27)
SMALLEST_FILE = 64 << 20  # bytes; the least that the object store of Ray needs


def reached_limit(error: BaseException) -> str | None:
    """What limit an error is about, and what to do. None if it is about none.

    The errors that caused it are searched too; Ray keeps that of a worker in `cause`.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if (advice := _advice(found)) is not None:
            return advice
        inner = getattr(found, "cause", None)
        found = inner if isinstance(inner, BaseException) else found.__cause__
    return None


def _advice(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, OSError) and error.errno in _ADVICE:
        file = error.filename
        # Ray Data puts pages of advice into the place of the name.
        is_name = isinstance(file, str) and re.fullmatch(r"/[^\n]*", file) is not None
        return f"{file}: {_ADVICE[error.errno]}" if is_name else _ADVICE[error.errno]
    if _NO_TEMPORARY in text:
        return "no folder for temporary files can be written: make room, or set TMPDIR to one"
    return next((advice for words, advice in _TEXTS.items() if words in text), None)


def low_limit() -> str | None:
    """Which limit of this process is too low to start Ray. None if none is."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < FEWEST_OPEN_FILES:
        return f"this process may open {files} files: raise the limit (`ulimit -n 8192`)"
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if 0 <= size < SMALLEST_FILE:
        return f"files may have {size} bytes at most: raise the limit (`ulimit -f unlimited`)"
    return None
