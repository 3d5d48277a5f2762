"""`python -m ...label_command PARENT WORDS...`: `label` as a process of this machine.

It gives way to the interactive requests, and ends with its parent.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# Of Linux' weights: where both could use a CPU, the detectors of requests get 75 % of it, and the
# run of the batch 25 %. What one of them does not use is the other's.
NICENESS = 10  # the detectors of requests have 5, see deploy.py
# Ray adds this to the niceness of its workers. By default it is 15 (2.60), so that with ours all
# would have the largest, 19.
RAY_NICENESS = "RAY_worker_niceness"


def main(parent: int, words: list[str]) -> None:
    """Become `label`. `parent` is the process that started this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        sys.exit(1)
    os.nice(NICENESS)
    os.environ[RAY_NICENESS] = "0"
    os.execv(sys.executable, [sys.executable, "-P", "-m", "jobs.cli", "label", *words])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
