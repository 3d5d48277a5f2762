"""A run begins with the process of its command: its time, rate and cost count from then."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.accounting.node_hours import NodeMeter, Rates
from jobs.accounting.startup import FIRST_BLOCK, Startup
from jobs.accounting.tally import Tally, report
from jobs.cli import main, process
from pipeline.schema import Receipt
from pipeline.storage.clock import steady_time

WORKERS = {"read": 8, "prepare": 1, "detect": 1, "stage": 8}
ENDING_SECONDS = 30.0  # most that the end of Ray takes, on a machine that others use


def test_the_time_before_the_flow_counts() -> None:
    startup = Startup(imports=40.0)
    startup.end("ray")
    tally = Tally(startup=startup)
    nodes = NodeMeter(lambda: [{"Alive": True, "Resources": {}}], startup.began)
    with nodes:
        tally.add(Receipt("a", ("s",), images=80, detections=0, finished_at=time.time()))
        hours_by_kind, hours = nodes.read()
    rates = Rates(usd_per_hour=36.0)
    found = report(tally, {"ok": 80}, 0, WORKERS, hours_by_kind, hours, rates)
    assert found["wall_seconds"] == pytest.approx(40, abs=2)
    assert found["images_per_second"] == pytest.approx(2, abs=0.1)
    assert found["usd"] == pytest.approx(0.4, abs=0.02)
    assert hours_by_kind["cpu"] * 3600 == pytest.approx(found["wall_seconds"], abs=1)
    assert list(found["startup_parts"])[-1] == FIRST_BLOCK
    assert found["startup_seconds"] == pytest.approx(sum(found["startup_parts"].values()), abs=0.01)


def test_a_second_run_of_a_command_begins_when_it_does() -> None:
    assert steady_time() - Startup().began < 1
    assert Startup().cpu.seconds() < 1
    assert Startup(imports=5.0).cpu.seconds() > 0  # all CPU time of this process


def test_a_process_that_only_calls_the_command_line_is_no_part_of_its_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["query", "--examples"]) == 0
    assert not process.was_created_for_command
    assert steady_time() - process.begin_startup().began < 1


@pytest.mark.slow
def test_a_report_has_the_time_that_went_by(photos_of_noise: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.cli", "label", str(photos_of_noise), str(tmp_path / "o")]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--model", "shapes-tiny", "--usd-per-hour", "36"],
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "o").glob("_runs/*/report.json")
    found = json.loads(file.read_text())
    assert took - ENDING_SECONDS < found["wall_seconds"] < took
    assert found["wall_seconds"] > sum(found["startup_parts"].values()) > 0.3 * took
    assert found["images_per_second"] == pytest.approx(2 / found["wall_seconds"])
    assert found["usd"] == pytest.approx(found["wall_seconds"] / 100, rel=0.05)
    assert 0 < found["cpu_use"] <= 1
    page = file.with_name("report.html")
    assert f"the page of this run: {page}" in done.stderr
    assert page.is_file()
