"""Wrong receivers are refused before any work, and no address is shown."""

import json
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.cli.submit import words_on_the_cluster
from jobs.label.options import LabelOptions
from jobs.submit.submit import Submission
from pipeline.storage.errors import InputError
from tests.support.webhooks import SECRET_PATH

SLACK = f"https://hooks.slack.com/services/{SECRET_PATH}"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETR_BATCH_NOTIFY_SECRET", "c" * 44)
    monkeypatch.setenv("HOOK", SLACK)
    monkeypatch.delenv("MISSING", raising=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--notify", "env:MISSING"], "--notify env:MISSING: the environment variable MISSING is"),
        (["--notify", "env:no name"], "behind `env:` stands the name of a variable"),
        (["--notify", f"hooks.slack.com/{SECRET_PATH}"], "--notify *** is no address of the web"),
        (["--notify", f"https:///{SECRET_PATH}"], "--notify *** is no address of the web"),
        (["--notify", f"https://h:port/{SECRET_PATH}"], "--notify *** is no address of the web"),
        (["--notify", f"s3://h/{SECRET_PATH}"], "--notify s3://h/*** is no address of the web"),
        (["--notify", SLACK], "--notify hooks.slack.com takes no JSON report: add --notify-form"),
        (["--notify", "env:HOOK"], "--notify hooks.slack.com takes no JSON report"),
        (["--notify", SLACK, "--notify-form", "text"], "invalid choice: 'text'"),
        (["--lineage", "gone/events.jsonl"], "its folder does not exist; make it first"),
        (["--lineage", "ftp://h/events"], "--lineage ftp://h/events cannot be opened: ftp:// is"),
        (["--lineage", "."], "--lineage . is a folder: give a file"),
        (["--lineage", "env:MISSING"], "the environment variable MISSING is not set"),
        (["--lineage", "labels/images/events.jsonl"], "its folder does not exist"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_wrong_receiver_is_refused(
    words: list[str],
    said: str,
    dry: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["label", "photos", "labels", *words, *dry])
    except SystemExit as end:  # refused by the parser
        code = int(end.code or 0)
    printed = capsys.readouterr().err
    assert code == 2
    assert said in printed
    assert SECRET_PATH not in printed
    assert not list(tmp_path.iterdir())


def test_a_report_is_signed_or_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DETR_BATCH_NOTIFY_SECRET")
    assert main(["label", "photos", "labels", "--notify", "https://h/a"]) == 2
    assert "DETR_BATCH_NOTIFY_SECRET is not set" in capsys.readouterr().err
    slack = LabelOptions("a", "b", notify=SLACK, notify_form="slack")
    assert slack.notify_key() is None


@pytest.mark.parametrize(
    "held", [b"\xff\xd8\xff", b"a,b\n", b"[" * 100_000, b"[1]\n", b'{"images": [], "info": {}}']
)
def test_no_event_is_appended_to_a_file_of_something_else(
    held: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(held)
    assert main(["label", "in", str(tmp_path / "labels"), "--lineage", str(file)]) == 2
    assert "is no file of events: name another" in capsys.readouterr().err
    assert file.read_bytes() == held


def test_events_are_not_written_among_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels" / "images").mkdir(parents=True)
    events = tmp_path / "labels" / "images" / "events.jsonl"
    assert main(["label", "in", str(tmp_path / "labels"), "--lineage", str(events)]) == 2
    assert "lies among the tables" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("http://marquez:5000", "http://marquez:5000/api/v1/lineage"),
        ("http://marquez:5000/", "http://marquez:5000/api/v1/lineage"),
        ("https://h/own/path", "https://h/own/path"),
        ("https://h?token=a", "https://h?token=a"),
        ("s3://bucket/events", "s3://bucket/events"),
    ],
)
def test_a_host_alone_gets_the_path_of_the_specification(given: str, place: str) -> None:
    assert LabelOptions("a", "b", lineage=given).lineage_place() == place


def test_the_record_of_a_run_shows_no_address() -> None:
    options = LabelOptions("a", "b", notify=SLACK, lineage=f"https://u:p@h:8/{SECRET_PATH}")
    shown = options.without_secrets("file:///a")
    assert (shown["notify"], shown["lineage"]) == ("https://hooks.slack.com/***", "https://h:8/***")
    assert SECRET_PATH not in json.dumps(shown)
    named = LabelOptions("a", "b", notify="env:HOOK", lineage="s3://bucket/events")
    shown = named.without_secrets("file:///a")
    assert (shown["notify"], shown["lineage"]) == ("env:HOOK", "s3://bucket/events")


@pytest.mark.parametrize(
    "given",
    [
        {"notify": SLACK, "notify_form": "slack"},
        {"notify": "https://receiver.internal/a"},
        {"lineage": "https://h/a?token=5ecre7"},
        {"lineage": "https://user:password@h/a"},
        {"lineage": "events.jsonl"},
    ],
)
def test_a_job_shows_no_address(given: dict[str, str]) -> None:
    options = LabelOptions("s3://b/in", "s3://b/out", address="http://h:8265", **given)  # type: ignore[arg-type]
    with pytest.raises(InputError) as error:
        Submission(options, {}, []).check()
    assert str(error.value).startswith(f"--{next(iter(given))} ")
    assert SECRET_PATH not in str(error.value)


def test_a_job_takes_the_address_from_its_own_environment() -> None:
    options = LabelOptions(
        "s3://b/in",
        "s3://b/out",
        address="http://h:8265",
        notify="env:MISSING",  # the machine that submits need not have it
        notify_form="slack",
        lineage="s3://b/events",
    )
    job = Submission(options, {}, words_on_the_cluster(options))
    job.check()
    assert "--notify env:MISSING --notify-form slack --lineage s3://b/events" in job.command()
    with pytest.raises(InputError, match="--env HOOK holds a password or a token"):
        Submission(options, {"HOOK": SLACK}, []).check()
