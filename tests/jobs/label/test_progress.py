"""The lines that a run writes to a log or a terminal while it goes on."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from jobs.accounting.startup import Startup
from jobs.accounting.tally import Tally
from jobs.label import progress
from jobs.label.progress import (
    LONGEST_PAUSE,
    SHORTEST_PAUSE,
    describe,
    describe_end,
    pause_between_lines,
    show_progress,
)
from pipeline.schema import Receipt


def receipt(images: int) -> Receipt:
    return Receipt("a", ("s",), images=images, detections=0, finished_at=time.time())


def test_the_last_line_of_a_short_run_does_not_say_that_it_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A single block gives no steady rate."""
    tally = Tally(startup=Startup(imports=10.0))
    show_progress([receipt(40)], tally, already=2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d 42 images, 4.0 .*", line)
    assert "starting" in describe(tally, 2, 0)


def test_the_last_line_does_not_repeat_the_one_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "pause_between_lines", lambda _: 0.0)
    tally = Tally(startup=Startup(imports=0.01))

    def receipts() -> Iterator[Receipt]:
        for images in (4, 5):
            yield receipt(images)
            time.sleep(0.1)

    show_progress(receipts(), tally)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "9 images, " in said[0]


def test_a_log_has_a_sign_of_life_before_the_first_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHORTEST_PAUSE", 0.05)
    lines: list[str] = []
    monkeypatch.setattr(progress, "print_line", lines.append)

    def receipts() -> Iterator[Receipt]:
        end = time.monotonic() + 60
        while not lines and time.monotonic() < end:
            time.sleep(0.01)
        yield receipt(3)

    show_progress(receipts(), Tally(startup=Startup(imports=10.0)))
    assert "0 images so far: workers start" in lines[0]
    assert "3 images, " in lines[-1]


def test_a_run_without_receipts_ends_with_a_line_too() -> None:
    assert describe_end(Tally(), 7) == "7 images, 0.0 images/s, 0 failed"


def test_the_log_of_a_long_run_has_some_lines_an_hour_and_long_ones_are_not_broken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now, lines = 0.0, 0
    while now < 8 * 3600:
        now += pause_between_lines(now)
        lines += 1
    assert 100 < lines < 200
    assert pause_between_lines(1.0) == SHORTEST_PAUSE
    assert pause_between_lines(1e6) == LONGEST_PAUSE
    first, second = (replace(receipt(1), computation=name * 60) for name in "ab")
    show_progress([first, second], Tally(startup=Startup(imports=10.0)))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "a" * 60 in said[0] and said[0].endswith("may differ")


@pytest.mark.slow
def test_a_log_says_what_begins_and_what_is_new(tmp_path: Path) -> None:
    """As the log of a nightly schedule: the second night has one image more."""
    photos, output = tmp_path / "photos", tmp_path / "labels"
    photos.mkdir()
    command = [sys.executable, "-m", "tests.support.alone", "label", str(photos), str(output)]
    logs = []
    for night in range(3):
        if night < 2:
            Image.new("RGB", (40, 30), (night, 9, 9)).save(photos / f"{night}.png")
        words = [*command, "--model", "shapes-tiny", "--no-page"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        logs.append((done.stdout, done.stderr.splitlines()))
    for out, lines in logs[:2]:
        assert out == "" and all(re.match(r"20\d\d-\d\d-\d\d \d\d:", line) for line in lines)
        assert not any("\r" in line for line in lines)
    (_, first), (_, second), (out, third) = logs
    assert first[0].endswith(f"label {photos} {output}")
    assert any(line.endswith("to label: 1 object, 0.0 MB") for line in first)
    assert any(line.endswith("0.0 MB; labelled already: 1") for line in second)
    assert len(third) == 1 and out == f"nothing new under {photos}: {output} holds it all\n"
