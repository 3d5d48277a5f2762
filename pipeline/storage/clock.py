"""Clocks that do not jump when the time of the machine is set."""

import time


def monotonic_seconds() -> float:
    """Seconds of a monotonic clock. On Linux it continues while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


_AHEAD = time.time() - monotonic_seconds()  # of Unix time, when this process started


def steady_time() -> float:
    """Unix time by the clock at the start of this process, and by the monotonic clock since."""
    return monotonic_seconds() + _AHEAD
