"""The begin of a run, and its start-up time until its first images are labelled, by part."""

import time

import psutil

from jobs.accounting.timeline import CpuMeter
from pipeline.storage import retries
from pipeline.storage.clock import steady_time

# The parts in their usual order. A part that did not happen is not recorded.
IMPORTS = "imports"  # the process starts, and Python loads its code
WEIGHTS = "weights"  # weights are found, hashed, and checked against the model
CATALOGUE = "catalogue"  # OUTPUT is locked, and its catalog is read
LISTING = "listing"  # INPUT is listed, and the plan is written
RAY = "ray"  # Ray is started or joined
FIRST_BLOCK = "first block"  # workers start, models load, and the first images come out


class Startup:
    """Measures the parts of a start-up. The parts follow one another.

    A run begins with its start-up: wall time, node-hours and CPU time count from then.
    """

    def __init__(self, imports: float | None = None):
        """`imports` is the time in seconds since this process was created to run this command.

        None if the process was created for something else, or for an earlier run: then the run
        begins now.
        """
        self._last = steady_time()
        self.began = self._last - (imports or 0.0)  # Unix time
        self.cpu = CpuMeter(of_process=imports is not None)
        self.repeated_before = retries.repeated  # requests repeated for earlier runs
        self.seconds: dict[str, float] = {} if imports is None else {IMPORTS: imports}

    def end(self, part: str, at: float | None = None) -> None:
        """End `part`, now or at the Unix time `at`. It began when the part before it ended."""
        now = steady_time() if at is None else at
        self.seconds[part] = self.seconds.get(part, 0.0) + max(0.0, now - self._last)
        self._last = now


def seconds_of_process() -> float:
    """Seconds since this process was created."""
    created = psutil.Process().create_time()
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux gives its boot time in whole seconds only
        return time.clock_gettime(time.CLOCK_BOOTTIME) - (created - psutil.boot_time())
    return time.time() - created
