"""A command that runs in a folder of images imports nothing from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.samples import jpeg
from tests.support.traps import imported, write_traps

# As the installed command starts: its own folder, and not the current one, is where modules are.
COMMAND = [sys.executable, "-P", "-m", "jobs.cli"]


@pytest.mark.slow
def test_modules_in_the_lake_are_not_imported(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    lake.mkdir()
    (lake / "a.jpg").write_bytes(jpeg())
    write_traps(lake)
    command = [*COMMAND, "label", ".", str(tmp_path / "out"), "--model", "shapes-tiny"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=lake, check=False, timeout=300
    )
    assert (done.returncode, imported(lake)) == (0, []), done.stderr
    assert "1 image labelled" in done.stderr
