"""GPUs as NVIDIA's driver reports them (NVML). No other file uses `pynvml`.

NVML is there where the driver is; without it, `find_gpu` finds nothing.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

T = TypeVar("T")


class Gpu:
    """One GPU, or one slice of a GPU (MIG). A figure is None where the driver does not report it.

    The driver reports neither the power nor the use of a slice.
    """

    def __init__(self, handle: Any, uuid: str, library: Any = pynvml):
        self.uuid, self._handle, self._library = uuid, handle, library
        # A handle of the whole GPU says nothing of the slice that a process computes on.
        mode = self._ask(lambda: library.nvmlDeviceGetMigMode(handle)[0])
        self._is_divided = mode == library.NVML_DEVICE_MIG_ENABLE
        self.name: str = self._ask(lambda: library.nvmlDeviceGetName(handle)) or "GPU"

    def _ask(self, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except self._library.NVMLError:
            return None

    def use(self) -> float | None:
        """The share of the last second, or less, in which a kernel ran."""
        if self._is_divided:
            return None
        rates = self._ask(lambda: self._library.nvmlDeviceGetUtilizationRates(self._handle))
        return None if rates is None else rates.gpu / 100

    def memory(self) -> tuple[int, int] | None:
        """Bytes in use, by all programs, and bytes in all."""
        if self._is_divided:
            return None
        found = self._ask(lambda: self._library.nvmlDeviceGetMemoryInfo(self._handle))
        return None if found is None else (int(found.used), int(found.total))

    def watts(self) -> float | None:
        """The power of the whole board."""
        if self._is_divided:
            return None
        found = self._ask(lambda: self._library.nvmlDeviceGetPowerUsage(self._handle))
        return None if found is None else found / 1e3

    def joules(self) -> float | None:
        """The energy that the board took since its driver was loaded; from Volta on."""
        if self._is_divided:
            return None
        found = self._ask(lambda: self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None if found is None else found / 1e3

    def clocks(self) -> dict[str, float]:
        """MHz of processors and memory, watts and degrees. Raises NVMLError if one is missing."""
        library, handle = self._library, self._handle
        return {
            "processors_mhz": library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM),
            "memory_mhz": library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM),
            "watts": library.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "degrees": library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU),
        }


def find_gpu(uuid: str, pci: str, library: Any = pynvml) -> Gpu | None:
    """The GPU with a UUID of CUDA, which has no prefix, or else at an address of the PCI bus.

    NVML counts devices that CUDA_VISIBLE_DEVICES hides, so their numbers are not those of CUDA.
    None if the driver has no NVML, or does not know the device.
    """
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    for find, name in (
        (library.nvmlDeviceGetHandleByUUID, f"GPU-{uuid}"),
        (library.nvmlDeviceGetHandleByUUID, f"MIG-{uuid}"),
        (library.nvmlDeviceGetHandleByPciBusId, pci),
    ):
        try:
            return Gpu(find(name), f"GPU-{uuid}" if name == pci else name, library)
        except library.NVMLError:
            continue
    return None


def find_gpu_of_cuda(properties: Any) -> Gpu | None:
    """The GPU with these `torch.cuda.get_device_properties`. None as `find_gpu`."""
    numbers = (properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id)
    return find_gpu(str(properties.uuid), "{:08x}:{:02x}:{:02x}.0".format(*numbers))
