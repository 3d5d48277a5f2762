"""A meter samples the GPU of its detector, and does without what the driver does not report."""

import pynvml
import pytest

from pipeline.gpu.meter import GpuMeter, start_gpu_meter
from pipeline.gpu.nvml import Gpu, find_gpu
from tests.support.gpus import FakeDriver

UUID = "6f1c0d2e-aaaa-bbbb-cccc-000000000001"


def gpu_of(driver: FakeDriver, pci: str = "none") -> Gpu:
    gpu = find_gpu(UUID, pci, driver)
    assert gpu is not None
    return gpu


def test_the_stand_in_has_functions_of_pynvml_alone() -> None:
    names = [name for name in dir(FakeDriver) if name.startswith(("nvml", "NVML"))]
    assert len(names) > 8 and all(hasattr(pynvml, name) for name in names)


def test_a_reading_has_means_and_the_energy_of_the_counter() -> None:
    driver = FakeDriver(f"GPU-{UUID}", "GPU-other")
    meter = GpuMeter(gpu_of(driver), "d")
    for use, watts, used in ((100, 200.0, 7), (50, 100.0, 3)):
        driver.use, driver.watts, driver.memory = use, watts, (used << 30, 16 << 30)
        meter.sample()
    driver.joules = 5600.0
    found = meter.read()
    assert (found["device"], found["name"]) == (f"GPU-{UUID}", "NVIDIA L4")
    assert (found["samples"], found["use"], found["watts"]) == (2, 0.75, 150.0)
    assert (found["memory"], found["total_memory"]) == (7 << 30, 16 << 30)
    assert (found["joules_before"], found["joules"], found["is_counter"]) == (5000, 5600, True)
    assert meter.read()["samples"] == 1  # of a call that was over before the next sample


def test_without_a_counter_the_energy_is_summed_from_power() -> None:
    driver, times = FakeDriver(f"GPU-{UUID}"), iter([0.0, 10.0, 20.0])
    driver.joules = None
    meter = GpuMeter(gpu_of(driver), "d", lambda: next(times))
    for watts in (100.0, 200.0, 100.0):
        driver.watts = watts
        meter.sample()
    found = meter.read()
    assert (found["joules_before"], found["joules"], found["is_counter"]) == (0, 3000, False)


def test_a_slice_has_no_power_that_is_known() -> None:
    """NVML refuses the power of a slice, and that of the whole GPU is not the slice's."""
    driver = FakeDriver(f"MIG-{UUID}")
    driver.watts = driver.joules = driver.use = None
    found = GpuMeter(gpu_of(driver), "d").read()
    assert (found["use"], found["watts"], found["joules"]) == (None, None, None)
    assert found["memory"] == 1 << 30 and found["device"] == f"MIG-{UUID}"
    whole = FakeDriver(pci="00000000:3b:00.0")
    whole.mig = pynvml.NVML_DEVICE_MIG_ENABLE
    found = GpuMeter(gpu_of(whole, "00000000:3b:00.0"), "d").read()
    names = ("use", "watts", "joules", "memory")
    assert [found[name] for name in names] == [None] * 4


def test_a_device_that_the_driver_does_not_know_is_not_measured() -> None:
    assert find_gpu(UUID, "none", FakeDriver("GPU-other")) is None


def test_without_nvml_there_is_no_meter() -> None:
    assert start_gpu_meter("cpu", "d") is None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert find_gpu(UUID, "none") is None
    else:
        pytest.skip("this machine has NVML")
