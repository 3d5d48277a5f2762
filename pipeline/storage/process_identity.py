"""Which process it was, so that another one of the same machine can tell whether it has ended.

The number of a process alone does not say it: numbers are used again, and containers have their
own. Only Linux tells more.
"""

import os
from pathlib import Path

_PROC = Path("/proc")
_ENDED = (b"Z", b"X")  # states of processes that have ended, and are not yet forgotten
_STATE, _START = 0, 19  # places in /proc/PID/stat behind the name of the program


def identity_of_process() -> str:
    """The boot of this machine, the namespace of its processes, the number of this one, its start.

    "" where the system does not tell.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
        return f"{boot} {namespace} {os.getpid()} {_stat(os.getpid())[_START].decode()}"
    except (OSError, IndexError):
        return ""


def has_ended(identity: str) -> bool:
    """Whether a process of this machine has ended. False if that cannot be told."""
    parts, ours = identity.split(" "), identity_of_process().split(" ")
    if len(parts) != 4 or parts[:2] != ours[:2] or not parts[2].isdecimal():
        return False
    try:
        os.kill(int(parts[2]), 0)  # asks whether there is such a process; it gets no signal
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # of another user: it lives, and /proc may not show it
        return False
    try:
        stat = _stat(int(parts[2]))
        return stat[_START].decode() != parts[3] or stat[_STATE] in _ENDED
    except (OSError, IndexError):
        return False


def _stat(pid: int) -> list[bytes]:
    """What the kernel says of a process behind the name of its program, which may hold spaces."""
    return (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
