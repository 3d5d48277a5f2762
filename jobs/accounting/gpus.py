"""Use, memory, power and energy of the GPUs of a run, from the readings of its detectors."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict

from pipeline.gpu.reading import GpuReading

JOULES_PER_WATT_HOUR = 3600.0


class GpuFigures(TypedDict):
    """What is known of one GPU. A figure is None if its driver does not report it."""

    device: str  # UUID
    name: str
    detectors: int  # detectors that computed on it, one after the other or at once
    use: float | None  # share of the time in which it computed, the mean
    memory: int | None  # bytes in use, by all programs; the greatest
    total_memory: int | None
    watts: float | None  # the mean
    watt_hours: float | None  # from the start of its first detector on


@dataclass
class _Mean:
    total: float = 0.0
    weight: int = 0

    def add(self, value: float | None, weight: int) -> None:
        if value is not None:
            self.total += value * weight
            self.weight += weight

    def value(self) -> float | None:
        return self.total / self.weight if self.weight else None


@dataclass
class _Span:
    """The energy of one detector, or of the counter of a GPU."""

    first: float = math.inf
    last: float = -math.inf

    def add(self, reading: GpuReading) -> None:
        if reading.joules is not None and reading.joules_before is not None:
            self.first = min(self.first, reading.joules_before)
            self.last = max(self.last, reading.joules)

    @property
    def joules(self) -> float | None:
        return self.last - self.first if self.last >= self.first else None


@dataclass
class _Device:
    name: str = ""
    use: _Mean = field(default_factory=_Mean)
    watts: _Mean = field(default_factory=_Mean)
    memory: int | None = None
    total_memory: int | None = None
    counted: _Span = field(default_factory=_Span)
    detectors: dict[str, _Span] = field(default_factory=dict)

    def add(self, reading: GpuReading) -> None:
        self.name = reading.name
        self.use.add(reading.use, reading.samples)
        self.watts.add(reading.watts, reading.samples)
        if reading.memory is not None:
            self.memory = max(reading.memory, self.memory or 0)
            self.total_memory = reading.total_memory
        own = self.detectors.setdefault(reading.detector, _Span())
        (self.counted if reading.is_counter else own).add(reading)

    def joules(self) -> float | None:
        """Each joule once: the counter is that of the GPU, and sums of power are of each detector.

        Detectors that sum the power of one GPU at the same time measure the same joules.
        """
        if self.counted.joules is not None:
            return self.counted.joules
        summed = [span.joules for span in list(self.detectors.values()) if span.joules is not None]
        return max(summed, default=None)


@dataclass
class GpuSums:
    """The sums over all readings of a run. It has no devices where no NVML is."""

    _devices: dict[str, _Device] = field(default_factory=dict)
    # The newest reading of each device, for metrics.
    newest: dict[str, GpuReading] = field(default_factory=dict)

    def add(self, readings: Iterable[GpuReading]) -> None:
        for reading in readings:
            self._devices.setdefault(reading.device, _Device()).add(reading)
            self.newest[reading.device] = reading

    def figures(self) -> list[GpuFigures]:
        """The figures of each GPU, sorted by UUID."""
        return [
            GpuFigures(
                device=uuid,
                name=one.name,
                detectors=len(one.detectors),
                use=one.use.value(),
                memory=one.memory,
                total_memory=one.total_memory,
                watts=one.watts.value(),
                watt_hours=None if (joules := one.joules()) is None else _watt_hours(joules),
            )
            for uuid, one in sorted(self._devices.items())
        ]

    def watt_hours(self) -> float | None:
        """The energy of all GPUs. None if there is none, or if that of one is not known."""
        joules = [one.joules() for one in list(self._devices.values())]  # threads share it
        known = [one for one in joules if one is not None]
        return _watt_hours(sum(known)) if known and len(known) == len(joules) else None


def _watt_hours(joules: float) -> float:
    return joules / JOULES_PER_WATT_HOUR
