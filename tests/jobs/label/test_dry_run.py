"""`label --dry-run` says what a run would do, and writes nothing."""

import re
from pathlib import Path

import pytest

from jobs.label.label import label
from tests.support.labelling import tiny_options
from tests.support.samples import write_jpegs

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_jpegs(tmp_path / "photos", "abcdefg")


@pytest.mark.parametrize("probe", [0, pytest.param(None, marks=pytest.mark.slow)])
def test_dry_run_writes_nothing(
    probe: int | None,
    photos: Path,
    tmp_path: Path,
    weights: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (photos / "notes.md").write_text("not an image")
    options = tiny_options(photos, tmp_path / "out", weights, dry_run=True, probe=probe)
    assert label(options) == 0
    told = capsys.readouterr()
    printed = told.out
    if probe is None:
        assert "labelling a probe of 7 images" in told.err and "--probe 0 leaves it out" in told.err
        assert re.search(r"estimate +about 7 images, .* \(by a probe of 7 images\)", printed), (
            printed
        )
    else:
        assert "probe" not in told.err and "--probe 200 measures it" in printed
    assert "image files    7 in 1 shard, " in printed
    assert "ignored        files that are no images (1: notes.md)\n" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_probe_says_what_failed(
    photos: Path, tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        (photos / f"{name}.jpg").write_bytes(b"no JPEG")
    options = tiny_options(photos, tmp_path / "out", weights, dry_run=True)
    assert label(options) == 0
    assert "3 of 7 images of the probe failed" in (told := capsys.readouterr().err)
    assert "3 undecodable" in told
