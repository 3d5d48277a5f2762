"""Figures of GPUs are made of readings: each joule counts once."""

from typing import Any

import pytest

from jobs.accounting.gpus import GpuSums
from jobs.accounting.node_hours import Rates
from jobs.accounting.tally import Tally, report
from jobs.report.report import as_text
from pipeline.gpu.reading import GpuReading
from pipeline.schema import Receipt
from tests.support.gpus import reading

WORKERS = {"read": 8, "prepare": 1, "detect": 2, "stage": 8}


def sums_of(*readings: GpuReading) -> GpuSums:
    sums = GpuSums()
    sums.add(readings)
    return sums


def test_a_device_of_two_detectors_is_counted_once() -> None:
    sums = sums_of(
        reading("one", joules_before=1000.0, joules=2000.0, samples=30, use=1.0),
        reading("two", joules_before=1500.0, joules=4600.0, samples=10, use=0.0, memory=9 << 30),
    )
    (gpu,) = sums.figures()
    assert gpu["detectors"] == 2
    assert gpu["use"] == 0.75 and gpu["memory"] == 9 << 30
    assert sums.watt_hours() == gpu["watt_hours"] == pytest.approx(1.0)


def test_sums_of_power_of_one_device_are_the_same_joules() -> None:
    summed: dict[str, Any] = {"is_counter": False, "joules_before": 0.0}
    first, second = (reading(name, **summed, joules=3600.0) for name in ("one", "two"))
    assert sums_of(first, second).watt_hours() == pytest.approx(1.0)
    other = reading("three", "GPU-b", **summed, joules=7200.0)
    assert sums_of(first, second, other).watt_hours() == pytest.approx(3.0)


def test_energy_is_not_known_if_that_of_a_device_is_not() -> None:
    hidden = reading("two", "MIG-b", joules=None, joules_before=None, watts=None, use=None)
    sums = sums_of(reading("one"), hidden)
    assert sums.watt_hours() is None
    assert [gpu["watt_hours"] for gpu in sums.figures()] == [pytest.approx(1.0), None]


def report_of_readings(*readings: GpuReading) -> str:
    tally = Tally()
    tally.add(Receipt("a", ("s",), images=40, detections=90, gpu=readings))
    summary = report(tally, {"ok": 40}, 90, WORKERS, {"gpu": 0.5}, 0.5, Rates())
    return as_text({"run_id": "r", **summary})


def test_a_report_has_watt_hours_per_thousand_images() -> None:
    text = report_of_readings(reading("one"))
    assert "GPU            NVIDIA L4 use 50 %, memory 5.0 of 20.0 GiB, power 100 W" in text
    assert "energy         1.00 Wh of GPUs, 25.0 Wh per 1,000 images" in text


def test_a_report_says_what_was_not_measured_and_nothing_without_gpus() -> None:
    unknown: dict[str, Any] = dict.fromkeys(
        ("joules", "joules_before", "watts", "use", "memory", "total_memory")
    )
    text = report_of_readings(reading("one", **unknown))
    assert "use not measured, memory not measured, power not measured" in text
    assert "energy         not measured" in text
    assert "GPU " not in report_of_readings() and "energy" not in report_of_readings()
