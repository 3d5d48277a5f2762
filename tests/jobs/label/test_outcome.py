"""What `label` says at its end of images that failed before."""

from pathlib import Path

import pytest

from jobs.label.outcome import print_untried_failures
from jobs.output.catalog import committed_runs
from tests.support.labelled import Labelled, write_run


def test_failures_that_lie_in_the_image_are_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = {"a": "undecodable", "b": "truncated", "c": "timed_out", "d": "ok"}
    images = [Labelled(f"in/{name}", status=status) for name, status in statuses.items()]
    output = write_run(tmp_path, images, ("", "circle"))
    again = [Labelled("in/b", status="undecodable", etag="new")]
    write_run(tmp_path, again, ("", "circle"), "20260102T000000Z-aaaaaa")
    print_untried_failures(output, committed_runs(output))
    assert "2 images that failed are not tried again: their reasons" in capsys.readouterr().err


def test_nothing_is_said_where_no_failure_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = write_run(tmp_path, [Labelled("in/a"), Labelled("in/b", status="timed_out")], ("",))
    print_untried_failures(output, committed_runs(output))
    assert capsys.readouterr().err == ""
