"""The threads that compute an image on a CPU."""

import os
import sys

import torch

NUMBA_THREADS = "NUMBA_NUM_THREADS"


def use_cpu_threads(count: int) -> None:
    """Let this thread of the process compute with `count` threads, and Numba start no more.

    Numba starts as many threads as there are CPUs when it is imported, unless an environment
    variable says otherwise. Those without work still take part in every barrier: on two cores, two
    processes that computed with one thread each made 1 image/s instead of 48 (2026-11-27).
    """
    if "numba" not in sys.modules:
        os.environ[NUMBA_THREADS] = str(count)
    torch.set_num_threads(count)
