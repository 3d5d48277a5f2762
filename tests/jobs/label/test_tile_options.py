"""`label --tile`: wrong options are refused, and what decides labels is recorded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.label.command import read_command
from jobs.label.notify.notifier import Notifier
from jobs.label.options import LabelOptions
from jobs.label.run_record import recorded_command
from jobs.label.tile_options import TileOptions
from model.config import PUBLISHED_RESIZE
from pipeline.stages.tiling import Tiling
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
