"""The parts of a start-up."""

import subprocess
import sys
import time

import pytest

from jobs.accounting.startup import IMPORTS, Startup


def test_parts_follow_one_another_and_add_up() -> None:
    startup = Startup(imports=2.0)
    began = startup.began + 2.0  # the process had taken that long
    startup.end("listing", began + 1)
    startup.end("ray", began + 4)
    startup.end("listing", began + 6)  # the rest of the listing
    startup.end("first block", began + 5)  # read from the clock of another machine, which is behind
    assert startup.seconds == {
        IMPORTS: 2.0,
        "listing": pytest.approx(3.0),
        "ray": pytest.approx(3.0),
        "first block": 0.0,
    }


def test_a_process_knows_how_long_ago_it_was_created() -> None:
    code = "import time; time.sleep(0.5); from jobs.accounting import startup\n"
    code += "print(startup.seconds_of_process())"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < time.perf_counter() - began + 0.05  # a tick is 10 ms
