"""An unfinished run that a stale listing hid from the run after it is not resumed."""

from pathlib import Path

import pytest

from jobs.label.options import LabelOptions
from jobs.output import paths
from pipeline.storage.files import canonical_url
from tests.jobs.label.test_planning import begin, photos, resume  # noqa: F401
from tests.support.committed import commit_run, make_target

FIRST, SECOND = "20260101T000000Z-aaaaaa", "20260102T000000Z-aaaaaa"


@pytest.mark.parametrize(("unfinished", "resumed"), [(FIRST, None), (SECOND, SECOND)])
def test_what_a_later_run_has_labelled_is_not_labelled_twice(
    unfinished: str,
    resumed: str | None,
    photos: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    options = LabelOptions(str(photos), str(tmp_path / "out"))
    begin(options, unfinished)
    other = SECOND if unfinished == FIRST else FIRST
    target = make_target(options.output, other, fingerprint="f00d")
    begin(options, other)  # its plan goes beside the manifest when it is committed
    Path(options.output, paths.plan_under_way(other)).rename(
        Path(options.output, paths.run_folder(other), "plan.parquet")
    )
    commit_run(target, canonical_url(str(photos)), [], {"ok": 2})
    run = resume(options)
    assert (run and run.run_id) == resumed
    assert Path(options.output, paths.staging(unfinished)).exists() == (resumed is not None)


def test_a_run_over_another_input_hides_nothing(photos: Path, tmp_path: Path) -> None:  # noqa: F811
    options = LabelOptions(str(photos), str(tmp_path / "out"))
    begin(options, FIRST)
    target = make_target(options.output, SECOND, fingerprint="f00d")
    begin(options, SECOND)
    Path(options.output, paths.plan_under_way(SECOND)).rename(
        Path(options.output, paths.run_folder(SECOND), "plan.parquet")
    )
    commit_run(target, "file:///elsewhere", [], {"ok": 2})
    run = resume(options)
    assert run is not None and run.run_id == FIRST
