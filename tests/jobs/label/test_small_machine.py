"""A run that does not fit on its machines leaves nothing in OUTPUT."""

from pathlib import Path

import pytest

from jobs.cli import main
from jobs.label import label as command
from pipeline.storage.errors import InputError
from tests.support.samples import jpeg


def test_machines_that_are_too_small_leave_no_trace_in_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InputError("2 detectors want 1 GPU each, and 0 fit")

    monkeypatch.setattr(command, "_start_ray", refuse)
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "a.jpg").write_bytes(jpeg(1))
    output = tmp_path / "out"
    words = ["label", str(tmp_path / "lake"), str(output), "--model", "shapes-tiny"]
    assert main(words) == 2
    assert [path for path in output.rglob("*") if path.is_file()] == []
