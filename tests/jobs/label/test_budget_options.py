"""Limits of time and money: what they mean, and which are refused."""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from jobs.accounting.budget import Budget
from jobs.accounting.node_hours import Rates
from jobs.cli import main
from jobs.cli.submit import words_on_the_cluster
from jobs.label.budget_options import limits_as_lines, time_as_text, time_of
from jobs.label.log.lines import without_time
from jobs.label.options import LabelOptions
from pipeline.storage.errors import InputError


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("now", "text", "meant"),
    [
        ("2026-11-28T05:59:59+01:00", "06:00", "2026-11-28T06:00:00+01:00"),
        ("2026-11-28T06:00:00+01:00", "6:00", "2026-11-29T06:00:00+01:00"),
        ("2026-12-31T23:59:00+01:00", "00:00:30", "2027-01-01T00:00:30+01:00"),
        # Summer time begins: the night is an hour shorter, and has no 02:30.
        ("2026-03-28T22:00:00+01:00", "06:00", "2026-03-29T06:00:00+02:00"),
        ("2026-03-28T22:00:00+01:00", "02:30", "2026-03-29T03:30:00+02:00"),
        # It ends: the night is an hour longer, and has 02:30 twice.
        ("2026-10-24T22:00:00+02:00", "06:00", "2026-10-25T06:00:00+01:00"),
        ("2026-10-25T02:15:00+02:00", "02:30", "2026-10-25T02:30:00+02:00"),
        ("2026-10-25T02:45:00+02:00", "02:30", "2026-10-25T02:30:00+01:00"),
        ("2026-11-28T05:00:00+01:00", "2026-12-01T06:00Z", "2026-12-01T07:00:00+01:00"),
        ("2026-11-28T05:00:00+01:00", "2026-12-01 06:00", "2026-12-01T06:00:00+01:00"),
    ],
)
def test_times_of_the_clock_are_those_that_come_next(now: str, text: str, meant: str) -> None:
    assert time_as_text(time_of(text, datetime.fromisoformat(now).timestamp())) == meant


@pytest.mark.parametrize("text", ["25:00", "06:60", "six", "2026-12-01", "06", "2026-13-01T06:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"--until {text} is no time"):
        time_of(text, time.time())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--max-usd", "5"],
            "--max-usd 5 wants a price above 0: give --instance-type or --usd-per-hour",
        ),
        (["--max-usd", "0", "--usd-per-hour", "1"], "--max-usd 0 is spent before the first block"),
        (["--max-hours", "-1"], "--max-hours -1 is spent before the first block"),
        (["--until", "2020-01-01T00:00Z"], "--until 2020-01-01T00:00Z is past"),
        (["--until", "noon"], "--until noon is no time"),
        (["--relabel", "--max-hours", "1"], "--relabel with --max-hours 1 would drop the labels"),
        (["--probe", "5"], "--probe 5: it is for --dry-run"),
        (["--probe", "-1", "--dry-run"], "--probe -1: give 0 or more"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_in_a_line(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    given = ["label", str(tmp_path), str(output), "--model", "shapes-tiny"]
    assert main([*given, *words]) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert without_time(printed).startswith(f"detr-batch: {line}")
    assert not output.exists()


def test_the_line_before_a_run_names_the_end_that_the_run_was_given() -> None:
    """Weights may take minutes to come, and the time may have passed when the line is printed."""
    at = datetime.fromisoformat("2020-01-01T06:00:00+01:00").timestamp()
    budget = Budget(0.0, Rates(), until=at, names={"until": "--until 06:00"})
    assert limits_as_lines(budget) == ["--until 06:00: the run ends at 2020-01-01T06:00:00+01:00"]


def test_a_job_ends_at_the_time_of_the_machine_that_submits_it() -> None:
    words = words_on_the_cluster(LabelOptions("in", "out", until="06:00", max_hours=2.0))
    at = words[words.index("--until") + 1]
    assert at.endswith(("T06:00:00+01:00", "T06:00:00+02:00"))
    assert words[words.index("--max-hours") + 1] == "2.0"
