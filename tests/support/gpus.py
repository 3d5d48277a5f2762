"""Readings of GPUs, and a stand-in for the driver's library with pynvml's functions."""

from types import SimpleNamespace
from typing import Any

import pynvml

from pipeline.gpu.reading import GpuReading


def reading(detector: str, device: str = "GPU-a", **other: Any) -> GpuReading:
    """A reading of an hour's joules of one watt, by the counter of the GPU."""
    figures: dict[str, Any] = {
        "name": "NVIDIA L4",
        "samples": 10,
        "use": 0.5,
        "memory": 5 << 30,
        "total_memory": 20 << 30,
        "watts": 100.0,
        "joules_before": 1000.0,
        "joules": 4600.0,
        "is_counter": True,
    }
    return GpuReading(detector, device, **figures | other)


class FakeDriver:
    """NVML of a machine with the GPUs `uuids`. A figure that is None is not supported.

    Constants and errors are pynvml's own.
    """

    NVMLError = pynvml.NVMLError
    NVML_DEVICE_MIG_ENABLE = pynvml.NVML_DEVICE_MIG_ENABLE

    def __init__(self, *uuids: str, pci: str = ""):
        self.uuids, self.pci = uuids, pci
        self.mig: int | None = None
        self.watts: float | None = 100.0
        self.joules: float | None = 5000.0
        self.use: int | None = 80
        self.memory: tuple[int, int] | None = (1 << 30, 16 << 30)

    def nvmlInit(self) -> None:
        if not self.uuids and not self.pci:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return self._found(uuid in self.uuids, uuid)

    def nvmlDeviceGetHandleByPciBusId(self, address: str) -> str:
        return self._found(address == self.pci, address)

    def _found(self, is_there: bool, handle: str) -> str:
        if not is_there:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle

    def _supported(self, value: Any) -> Any:
        if value is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value

    def nvmlDeviceGetMigMode(self, handle: str) -> tuple[int, int]:
        return self._supported(self.mig), 0

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "NVIDIA L4"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(gpu=self._supported(self.use))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        used, total = self._supported(self.memory)
        return SimpleNamespace(used=used, total=total)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> float:
        return 1e3 * float(self._supported(self.watts))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> float:
        return 1e3 * float(self._supported(self.joules))
