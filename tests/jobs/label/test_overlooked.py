"""An unfinished run is not resumed if another run has labelled its images since it was planned.

A listing of OUTPUT that lags behind hides a killed run from the next command, which plans anew.
"""

from pathlib import Path

import pytest

from jobs.label.options import LabelOptions
from jobs.output import paths
from pipeline.storage.files import canonical_url
from tests.support.committed import commit_run, make_target
from tests.support.samples import write_jpegs
from tests.support.unfinished import MARK, begin, resume

FIRST, SECOND = "20260101T000000Z-aaaaaa", "20260102T000000Z-aaaaaa"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_jpegs(tmp_path / "photos", "ab")


def finish(options: LabelOptions, run_id: str, source: str) -> None:
    """Commit a run that `begin` began. Its plan moves beside the manifest."""
    Path(options.output, paths.plan_under_way(run_id)).rename(
        Path(options.output, paths.run_folder(run_id), "plan.parquet")
    )
    commit_run(make_target(options.output, run_id, fingerprint=MARK), source, [], {"ok": 2})


@pytest.mark.parametrize("finished", [FIRST, SECOND])
def test_of_two_unfinished_runs_over_the_same_images_one_is_finished(
    finished: str,
    photos: Path,
    tmp_path: Path,
) -> None:
    options = LabelOptions(str(photos), str(tmp_path / "out"))
    for run_id in (FIRST, SECOND):
        begin(options, run_id)
    finish(options, finished, canonical_url(options.input))
    assert resume(options) is None
    for run_id in {FIRST, SECOND} - {finished}:
        assert not Path(options.output, paths.staging(run_id)).exists()


def test_a_run_that_was_planned_after_all_others_is_resumed(
    photos: Path,
    tmp_path: Path,
) -> None:
    options = LabelOptions(str(photos), str(tmp_path / "out"))
    begin(options, SECOND)
    finish(options, SECOND, canonical_url(options.input))
    begin(options, FIRST)  # by a clock that is a day behind
    run = resume(options)
    assert run is not None and run.run_id == FIRST


def test_a_run_over_another_input_hides_nothing(photos: Path, tmp_path: Path) -> None:
    options = LabelOptions(str(photos), str(tmp_path / "out"))
    for run_id in (FIRST, SECOND):
        begin(options, run_id)
    finish(options, SECOND, "file:///elsewhere")
    run = resume(options)
    assert run is not None and run.run_id == FIRST
