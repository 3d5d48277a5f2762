"""Ray's own lines that mean nothing to a user do not reach stderr; all other lines do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster.ray_lines import UNHANDLED, _stderr_without, hush_logs
from jobs.label.log.lines import without_time
from tests.support.samples import jpeg


def test_other_lines_are_written_late_but_whole(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="gone"), _stderr_without(b"no news"):
        os.write(2, b"an error\nthis is no news to you\nanother")
        raise OSError("gone")
    os.write(2, b" error\n")
    assert capfd.readouterr().err == "an error\nanother error\n"


@pytest.mark.slow
def test_a_run_on_a_ray_of_its_own_says_what_it_did_and_no_more(tmp_path: Path) -> None:
    """It fails if an upgrade of Ray brings new lines, or changes the words of old ones."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(1))
    command = [sys.executable, "-m", "jobs.cli", "label", str(tmp_path / "photos")]
    command += [str(tmp_path / "out"), "--model", "shapes-tiny", "--no-page"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [without_time(line) for line in done.stderr.splitlines()]
    (end,) = (number for number, line in enumerate(lines) if "1 image labelled with" in line)
    starts, progress = lines[:4], lines[4:end]
    for line, begin in zip(starts, ("label ", "to label", "starting Ray", "run 2"), strict=True):
        assert line.startswith(begin), lines
    assert all(re.match(r"\d+ images?, .* failed", line) for line in progress), progress
    assert "starting" not in progress[-1]
    assert all(line.startswith("no box reached the threshold") for line in lines[end + 1 :]), lines


def test_errors_of_tasks_that_nobody_waits_for_are_no_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private import worker

    errors = [ValueError("ended by a budget")]
    monkeypatch.setattr(worker.Worker, "deserialize_objects", lambda *_: errors)
    said: list[Exception] = []
    monkeypatch.setattr(worker, "_unhandled_error_handler", said.append)
    monkeypatch.setenv(UNHANDLED, "")  # so that it is restored
    monkeypatch.delenv(UNHANDLED)
    worker.Worker().raise_errors([], [])
    assert said == errors
    hush_logs()
    worker.Worker().raise_errors([], [])
    assert said == errors
