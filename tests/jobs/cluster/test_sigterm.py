"""A driver that is told to end has all the time that it needs for that, and prints no stack."""

import subprocess
import sys

import pytest

ENDED = """
import os, signal, time
from jobs.cluster.start import start_ray
start_ray(None)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
except SystemExit:
    time.sleep(5)  # as a driver that waits for a slow store
    print("tidied up", flush=True)
    raise SystemExit(1)
"""


@pytest.mark.slow
def test_a_driver_that_tidies_up_for_seconds_is_not_aborted() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDED], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (1, "tidied up\n"), done.stderr
    assert "SIGTERM received" not in done.stderr
