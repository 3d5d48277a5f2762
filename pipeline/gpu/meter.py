"""A thread that samples use, memory and power of the GPU of a detector."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from pipeline.gpu.reading import GpuReading

if TYPE_CHECKING:
    from pipeline.gpu.nvml import Gpu

SAMPLE_SECONDS = 1.0  # NVML reports the use of the last second, or of a sixth of it


class GpuMeter:
    """Samples a GPU from `start` on. What it cannot measure is None; it never raises an error."""

    def __init__(
        self,
        gpu: "Gpu",
        detector: str,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`detector` names the detector that reports this, among all of a run."""
        self.gpu, self.detector, self.clock = gpu, detector, clock
        self._lock = threading.Lock()
        self._before = gpu.joules()
        self._is_counter = self._before is not None
        self._summed = 0.0  # joules, where the GPU has no counter
        self._last: tuple[float, float] | None = None  # time and watts of the last sample
        self._forget_samples()

    def _forget_samples(self) -> None:
        self._uses: list[float] = []
        self._watts: list[float] = []
        self._memory: tuple[int, int] | None = None
        self._samples = 0

    def start(self) -> "GpuMeter":
        """Sample every SAMPLE_SECONDS until the process ends."""
        threading.Thread(target=self._watch, daemon=True, name="gpu").start()
        return self

    def _watch(self) -> None:
        while True:
            self.sample()
            time.sleep(SAMPLE_SECONDS)

    def sample(self) -> None:
        """Take one sample."""
        use, memory, watts, now = self.gpu.use(), self.gpu.memory(), self.gpu.watts(), self.clock()
        with self._lock:
            self._samples += 1
            self._uses += [] if use is None else [use]
            self._memory = max(filter(None, (self._memory, memory)), default=None)
            if watts is not None:
                self._watts.append(watts)
                if self._last is not None:
                    before, power = self._last
                    self._summed += (now - before) * (watts + power) / 2
                self._last = now, watts

    def read(self) -> dict[str, Any]:
        """A row of the struct GPU: the samples since the last call, and the energy so far."""
        with self._lock:
            needs_sample = not self._samples
        if needs_sample:
            self.sample()
        counted = self.gpu.joules() if self._is_counter else None
        with self._lock:
            used, total = self._memory or (None, None)
            is_known = self._is_counter or self._last is not None
            before = self._before if self._is_counter else 0.0 if is_known else None
            reading = GpuReading(
                self.detector,
                self.gpu.uuid,
                self.gpu.name,
                self._samples,
                _mean(self._uses),
                used,
                total,
                _mean(self._watts),
                before,
                counted if self._is_counter else self._summed if is_known else None,
                self._is_counter,
            )
            self._forget_samples()
        return vars(reading)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def start_gpu_meter(device: str, detector: str) -> GpuMeter | None:
    """A meter of the GPU that CUDA calls `device`; None on CPUs, and where NVML is missing."""
    if device == "cpu":
        return None
    from pipeline.gpu.nvml import find_gpu_of_cuda  # CPUs do not need it

    gpu = find_gpu_of_cuda(torch.cuda.get_device_properties(device))
    return None if gpu is None else GpuMeter(gpu, detector).start()
