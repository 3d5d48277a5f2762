"""Clocks that are not set, and clocks that jump while a command runs."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.output import paths
from jobs.output.catalog import committed_runs
from jobs.output.log_writer import LogWriter
from jobs.output.run_ids import new_run_id
from jobs.output.store import OutputStore
from pipeline.storage.errors import InputError
from tests.jobs.output.test_old_versions import import_command, write_detections
from tests.support.parameters import others_slow
from tests.support.tables import rows

YEARS = 365.25 * 86_400  # seconds of a year
# Runs a command whose clock is ahead by some seconds as soon as a file exists.
SHIFTED = """
import datetime, os, sys, time
import jobs.imports.imports
from jobs.cli import main
shift, since, real = float(sys.argv[1]), sys.argv[2], time.time
time.time = lambda: real() + (shift if os.path.exists(since) else 0.0)
class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
for name, module in list(sys.modules.items()):
    if name.startswith(("jobs.", "pipeline.")) and hasattr(module, "datetime"):
        module.datetime = Shifted
sys.exit(main(sys.argv[3:]))
"""


def run_at(shift: float, since: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SHIFTED, str(shift), str(since), *words]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("years", "shown"),
    [(-(time.time() / YEARS), "1970-01-01"), (7950, "9977"), (8200, "1022")],
    ids=["1970", "9977", "after the year 9999"],
)
def test_a_clock_that_is_not_set_is_refused_in_one_line(
    years: float, shown: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = import_command(output, write_detections(tmp_path, "a", 2))
    done = run_at(years * YEARS, tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert f"the clock of this machine says {shown}" in done.stderr
    assert done.stderr.count("\n") == 1 and not output.exists()


@pytest.mark.parametrize("years", others_slow([7900, -60, 8100]))
@pytest.mark.parametrize(("since", "code"), [(paths.entry(1), 2), (paths.STAGING, 0)])
def test_a_clock_that_jumps_loses_nothing(
    since: str, code: int, years: float, tmp_path: Path
) -> None:
    """Before a run has its id, and when its rows are made; then the clock is right again."""
    output = tmp_path / "out"
    words = import_command(output, write_detections(tmp_path, "a", 2))
    done = run_at(years * YEARS, output / since, *words)
    assert done.returncode == code, done.stderr
    assert "internal error" not in done.stderr and done.stderr.count("\n") <= 1
    assert code == 0 or "the clock of this machine says" in done.stderr
    assert main(import_command(output, write_detections(tmp_path, "a", 3))) == 0
    assert rows(str(output), "SELECT count(*) FROM latest") == [(3,)]
    for command in ("runs", "report", "compact"):
        assert main([command, str(output)]) == 0, command
    assert rows(str(output), "SELECT count(*) FROM latest") == [(3,)]
    assert len(committed_runs(str(output))) == 1


@pytest.mark.parametrize(
    "name", ["99991231T235959Z-ffffff", "20999999T000000Z-ffffff", "99999999T999999Z-"]
)
def test_a_run_that_no_id_sorts_behind_is_named(name: str, tmp_path: Path) -> None:
    document = tmp_path / paths.document(name, "run.json")
    document.parent.mkdir(parents=True)
    document.write_text("{}")
    with pytest.raises(InputError, match=f"{name}.*delete the folder {document.parent}"):
        new_run_id(str(tmp_path))


@pytest.mark.parametrize(
    ("kept_until", "kept"),
    [(time.time() + 86_400, True), (2.5e11, False)],
    ids=["tomorrow", "year 9892"],
)
def test_replaced_files_are_not_kept_until_a_time_that_no_clock_shows(
    kept_until: float, kept: bool, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert main(import_command(output, write_detections(tmp_path, "a", 2))) == 0
    (run,) = committed_runs(str(output))
    store = OutputStore(str(output))
    writer = LogWriter(store)
    writer.fence()
    writer.commit(None, [run["run_id"]], "replaced", kept_until)
    abandoned = set(LogWriter(store).abandoned_files())
    assert abandoned.isdisjoint({file["path"] for file in run["files"]}) is kept
