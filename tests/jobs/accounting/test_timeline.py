"""The timeline of a run has a bounded size and counts every image."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.accounting.timeline import MOST_POINTS, CpuMeter, Point, Timeline, rates


def test_a_timeline_of_any_length_is_bounded_and_keeps_every_image(seed: int) -> None:
    chance = random.Random(seed)
    for length in (0.5, 60.0, 3600.0, 40 * 3600.0):
        timeline = Timeline()
        for number in range(5000):
            at = length * number / 5000
            timeline.add(max(0.0, at - chance.random()), 40)
            timeline.add_cpu(at, at * 2)
        points = timeline.points()
        assert len(points) <= MOST_POINTS + 1
        assert points[0]["seconds"] == points[0]["images"] == 0
        assert points[-1]["images"] == 5000 * 40
        assert length <= points[-1]["seconds"] <= length + 2 * timeline.width
        for name in ("seconds", "images", "cpu_seconds"):
            values = np.array([dict(point)[name] for point in points], float)  # None becomes NaN
            numbers = values[~np.isnan(values)]
            assert len(numbers)
            assert (np.diff(numbers) >= 0).all()


def test_rates_leave_the_start_up_empty_and_add_up() -> None:
    points: list[Point] = [
        {"seconds": 0.0, "images": 0, "cpu_seconds": None},
        {"seconds": 10.0, "images": 40, "cpu_seconds": None},
        {"seconds": 20.0, "images": 240, "cpu_seconds": None},
    ]
    parts = rates(points, 20, steady=20.0)
    assert [rate for _, rate, _ in parts[:8]] == [0.0] * 8
    assert [rate for _, rate, _ in parts[8:]] == pytest.approx([20.0] * 12)
    assert {busy for _, _, busy in parts} == {None}


def test_cpu_seconds_of_children_count_while_they_run_and_when_they_ended() -> None:
    """Runs in its own process, because workers of a Ray that other tests started may end."""
    check = "from tests.jobs.accounting.test_timeline import check_children; check_children()"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[3])


def check_children() -> None:
    meter = CpuMeter()
    work = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    ended = meter.seconds()
    assert ended > 0.4
    waiting = "\nprint(1, flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", work + waiting], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        child.stdout.readline()
        assert meter.seconds() > ended + 0.4
        child.communicate(b"\n")
