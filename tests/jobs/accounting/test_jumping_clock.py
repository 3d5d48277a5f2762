"""A clock that is set while a run goes on changes no duration, rate or cost."""

import time

import pytest

from jobs.accounting.node_hours import NodeMeter, Rates
from jobs.accounting.startup import Startup
from jobs.accounting.tally import Tally, report
from jobs.label.progress import describe, describe_end
from pipeline.schema import Receipt

WORKERS = {"read": 8, "prepare": 1, "detect": 1, "stage": 8}
YEAR = 365.25 * 86_400


@pytest.mark.parametrize("jump", [-60 * YEAR, -3600.0, 3600.0, 7900 * YEAR])
def test_no_duration_follows_a_clock_that_jumps(
    jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.perf_counter()
    startup = Startup()
    tally = Tally(startup=startup)
    nodes = NodeMeter(lambda: [{"Alive": True, "Resources": {}}], startup.began)
    with nodes:
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        for _ in range(3):
            # a steady rate needs a tenth of the time so far, however late a loaded machine is here
            time.sleep(0.02 + 0.2 * (time.perf_counter() - began))
            tally.add(
                Receipt(
                    "a", ("s",), images=40, detections=9, encoded_bytes=9, finished_at=time.time()
                )
            )
        hours_by_kind, hours = nodes.read()
    assert 0 < hours_by_kind["cpu"] < 0.01 and 0 < hours < 0.01
    found = report(tally, {"ok": 120}, 27, WORKERS, hours_by_kind, hours, Rates(usd_per_hour=1.0))
    assert 0.06 <= found["wall_seconds"] < 60
    assert found["images_per_second"] > 2
    assert found["startup_seconds"] is not None and 0 < found["startup_seconds"] < 60
    assert sum(found["startup_parts"].values()) < 60
    assert found["images_per_second_steady"] is not None and found["images_per_second_steady"] > 1
    assert found["timeline"][-1]["seconds"] < 60
    assert "images/s" in describe(tally, 0, 10**15) and "-" not in describe_end(tally, 0)
