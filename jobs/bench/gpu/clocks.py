"""Clocks, power and use of a GPU, as the driver reports them."""

from importlib.util import find_spec
from typing import Any

import torch


def read_clocks(device: str) -> dict[str, float] | None:
    """Read MHz of processors and memory, watts and degrees; None where they are not available."""
    try:
        return _read_clocks(device)
    except Exception:  # NVML does not report all of them for all devices
        return None


def _read_clocks(device: str) -> dict[str, float] | None:
    """Read the clocks; None on CPUs or without nvidia-ml-py."""
    handle = _handle(device)
    if handle is None:
        return None
    import pynvml as nvml

    return {
        "processors_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "degrees": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }


def read_use(device: str) -> float | None:
    """Read the share of recent time in which a kernel ran; None as in `_read_clocks`."""
    handle = _handle(device)
    if handle is None:
        return None
    import pynvml as nvml

    return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100


def _handle(device: str) -> Any:
    if device == "cpu" or find_spec("pynvml") is None:
        return None
    import pynvml as nvml

    nvml.nvmlInit()
    # The device is found by its UUID, as the driver may count devices hidden from this process.
    uuid = torch.cuda.get_device_properties(device).uuid
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
