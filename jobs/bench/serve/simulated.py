"""A detector of the endpoint that waits instead of computing, and uses no CPU."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from jobs.bench.simulated import SimulatedDetector
from jobs.serve.engine.detectors import Detecting
from jobs.serve.engine.spec import EngineSpec


class SimulatedDetecting(Detecting):
    """Takes `seconds` for each image, one after the other, as one device does."""

    def __init__(self, spec: EngineSpec, seconds: float):
        self._seconds = seconds
        super().__init__(spec)
        self._threads = ThreadPoolExecutor(1, "device")

    def _make_detector(self, spec: EngineSpec) -> Callable[[pa.Table], pa.Table]:
        return SimulatedDetector(self._seconds)
