"""Clocks, power and use of a GPU, as the driver reports them."""

import torch

from pipeline.gpu.nvml import Gpu, find_gpu_of_cuda


def read_clocks(device: str) -> dict[str, float] | None:
    """Read MHz of processors and memory, watts and degrees; None where they are not available."""
    try:
        gpu = _gpu(device)
        return None if gpu is None else gpu.clocks()
    except Exception:  # NVML does not report all of them for all devices
        return None


def read_use(device: str) -> float | None:
    """Read the share of recent time in which a kernel ran; None where it is not available."""
    gpu = _gpu(device)
    return None if gpu is None else gpu.use()


def _gpu(device: str) -> Gpu | None:
    if device == "cpu":
        return None
    return find_gpu_of_cuda(torch.cuda.get_device_properties(device))
