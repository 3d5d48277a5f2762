"""`label --tile`: wrong options are refused, and what decides labels is recorded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.cli import main
from jobs.label.command import read_command
from jobs.label.label import label
from jobs.label.notify.notifier import Notifier
from jobs.label.options import LabelOptions
from jobs.label.run_record import recorded_command
from jobs.label.tile_options import TileOptions
from model.config import PUBLISHED_RESIZE
from pipeline.stages import detect
from pipeline.stages.joining import join_views
from pipeline.stages.recovery import Outcome
from pipeline.stages.tiling import Tiling, View
from pipeline.storage.errors import InputError
from tests.support.alone import label_without_ray
from tests.support.labelling import tiny_options


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--tile 87", "--tile 87: give at least 88"),
        ("--tile 0", "--tile 0: give at least 88"),
        ("--tile -5", "--tile -5: give at least 88"),
        ("--tile 700 --tile-overlap 0.51", "--tile-overlap 0.51: give 0 to 0.5"),
        ("--tile 700 --tile-overlap -0.1", "--tile-overlap -0.1: give 0 to 0.5"),
        ("--tile-overlap 0.2", "--tile-overlap is that of tiles: give --tile too"),
    ],
)
def test_wrong_tiles_are_refused_in_one_line(
    words: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    command = ["label", str(tmp_path / "in"), str(tmp_path / "out"), "--model", "shapes-tiny"]
    assert main([*command, *words.split()]) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_default_overlap_is_a_fifth() -> None:
    assert TileOptions().tiling(PUBLISHED_RESIZE) is None
    assert TileOptions(tile=800).tiling(PUBLISHED_RESIZE) == Tiling(800, 0.2)
    assert TileOptions(tile=800, tile_overlap=0.0).tiling(PUBLISHED_RESIZE) == Tiling(800, 0.0)


def test_labels_of_tiles_are_others_than_those_without(tmp_path: Path, weights: str) -> None:
    options = tiny_options(tmp_path, tmp_path / "out", weights)
    choices: list[dict[str, Any]] = [
        {},
        {"tile": 700},
        {"tile": 701},
        {"tile": 700, "tile_overlap": 0.3},
        {"tile": 700, "tile_overlap": 0.2},  # the default
    ]
    marks = [fingerprint_of(replace(options, **one)) for one in choices]
    assert len(set(marks[:4])) == 4 and marks[4] == marks[1]


def fingerprint_of(options: LabelOptions) -> str:
    notifier = Notifier(None, options.input, options.output)
    command = read_command(options, notifier, options.budget(0.0, options.rates()))
    return command.labels.fingerprint


def test_a_recorded_command_names_its_tiles(tmp_path: Path, weights: str) -> None:
    options = tiny_options(tmp_path, tmp_path / "out", weights, tile=1333, tile_overlap=0.25)
    record = {"options": options.without_secrets("in")}
    assert "--tile 1333 --tile-overlap 0.25" in recorded_command(record)
    del record["options"]["tile"], record["options"]["tile_overlap"]  # of an earlier version
    assert "--tile" not in recorded_command(record)


def test_other_tiles_are_refused_as_such_and_not_as_other_weights(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_without_ray(children=False, replace=monkeypatch.setattr)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "in/a.png")
    options = tiny_options(tmp_path / "in", tmp_path / "out", weights)
    assert label(options) == 0
    with pytest.raises(InputError, match="no options that choose boxes or tiles") as refused:
        label(replace(options, tile=100))
    assert "other weights" not in str(refused.value)


@pytest.mark.slow
def test_a_probe_and_a_budget_label_in_tiles(
    tmp_path: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    label_without_ray(children=False, replace=monkeypatch.setattr)
    joined: list[int] = []

    def count_and_join(views: Sequence[View], outcomes: Sequence[Outcome]) -> Outcome:
        joined.append(len(views))
        return join_views(views, outcomes)

    monkeypatch.setattr(detect, "join_views", count_and_join)
    (tmp_path / "in").mkdir()
    for number in range(6):
        Image.new("RGB", (150, 90), (number, 90, 40)).save(tmp_path / f"in/{number}.png")
    options = tiny_options(tmp_path / "in", tmp_path / "out", weights, tile=100)
    assert label(replace(options, dry_run=True, probe=6)) == 0
    assert "(by a probe of 6 images)" in capsys.readouterr().out
    assert joined == [3] * 6 and not (tmp_path / "out").exists()
    assert label(replace(options, usd_per_hour=1.0, max_usd=5.0)) == 0
    assert joined == [3] * 12
