"""A command tells its receivers of its runs and of its end, and no receiver can harm it."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier

from jobs.cli import main
from jobs.label.log.lines import without_time
from jobs.label.notify import notifier as notifying
from jobs.label.notify import post as posting
from jobs.label.notify.announced_run import AnnouncedRun, Ending
from jobs.label.notify.notifier import Notifier
from jobs.label.notify.options import NotifyOptions
from jobs.label.options import LabelOptions
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.files import list_files, open_location, read_object
from tests.jobs.label.notify.facts import begun_run, published_run
from tests.support.webhooks import SECRET_PATH, Answer, Webhook, webhook

KEY = f"whsec_{base64.b64encode(bytes(range(24))).decode()}"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETR_BATCH_NOTIFY_SECRET", KEY)
    monkeypatch.setattr(posting, "FIRST_PAUSE", 0.02)


@pytest.fixture
def receiver() -> Iterator[Webhook]:
    with webhook() as found:
        yield found


def run_published(announced: AnnouncedRun) -> None:
    done = published_run()
    announced.state, announced.figures, announced.files = done.state, done.figures, done.files


def tell(options: NotifyOptions, output: Path | str, error: BaseException | None = None) -> None:
    """Tell of one run, which ends with `error`, and of the end of its command."""
    notifier = Notifier(options, str(output).replace("labels", "photos"), str(output))
    with suppress(BaseException), notifier.run(begun_run()) as announced:
        if error is not None:
            raise error
        run_published(announced)
    notifier.end(Ending(0) if error is None else Ending(1, str(error)))


def test_a_message_is_sent_once_and_repeated_under_its_id(tmp_path: Path) -> None:
    with webhook(Answer(503), Answer(429)) as receiver:
        tell(NotifyOptions(notify=receiver.url), tmp_path / "labels")
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert len({request.body for request in receiver.requests}) == 1
    assert len(receiver.requests) == 3
    for request in receiver.requests:
        message = Verifier(KEY).verify(request.body, dict(request.headers))
        assert message["data"]["images"] == {"ok": 5, "undecodable": 1}


def test_slack_gets_its_own_form_and_no_signature(receiver: Webhook, tmp_path: Path) -> None:
    tell(NotifyOptions(notify=receiver.url, notify_form="slack"), tmp_path / "labels")
    (request,) = receiver.requests
    assert request.document.keys() == {"text", "blocks"}
    assert not [name for name in request.headers if name.startswith("webhook-")]


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "COMPLETE"), (CommandFailed("no space"), "FAIL"), (SystemExit(15), "ABORT")],
)
def test_events_are_lines_of_a_file(
    error: BaseException | None, state: str, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"eventType": "EARLIER"}\n')
    tell(NotifyOptions(lineage=str(file)), tmp_path / "labels", error)
    earlier, *events = [json.loads(line) for line in file.read_text().splitlines()]
    assert earlier == {"eventType": "EARLIER"}
    assert [event["eventType"] for event in events] == ["START", state]
    assert len({event["run"]["runId"] for event in events}) == 1
    assert events[0]["inputs"][0]["name"] == str(tmp_path / "photos")


def test_events_are_objects_of_a_bucket(bucket: str) -> None:
    tell(NotifyOptions(lineage=f"{bucket}/events"), f"{bucket}/labels")
    fs, path = open_location(f"{bucket}/events", "events")
    events = [json.loads(read_object(fs, name)) for name in list_files(fs, path)]
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"]


def test_events_are_posted_with_a_key(
    receiver: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "k3y")
    monkeypatch.setenv("LINEAGE", receiver.url.partition("/services")[0])
    tell(NotifyOptions(lineage="env:LINEAGE"), tmp_path / "labels")
    assert [request.path for request in receiver.requests] == ["/api/v1/lineage"] * 2
    assert [request.document["eventType"] for request in receiver.requests] == ["START", "COMPLETE"]
    assert receiver.requests[0].headers["authorization"] == "Bearer k3y"


@pytest.mark.parametrize("wrong", [CommandFailed("no space"), KeyboardInterrupt()])
def test_the_error_of_a_run_stays_itself(wrong: BaseException) -> None:
    with pytest.raises(type(wrong)) as error, Notifier(None, "in", "out").run(begun_run()):
        raise wrong
    assert error.value is wrong


def test_receivers_that_are_away_cost_no_more_than_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifying, "PATIENCE", 0.3)
    (tmp_path / "folder").mkdir()
    with webhook(*[Answer(seconds=1)] * 3) as receiver:
        options = NotifyOptions(notify=receiver.url, lineage=str(tmp_path / "folder" / "events"))
        notifier = Notifier(options, "in", str(tmp_path / "labels"))
        (tmp_path / "folder").rmdir()
        began = time.monotonic()
        with notifier.run(begun_run()) as announced:
            run_published(announced)
        notifier.end(Ending(0))
        assert time.monotonic() - began < 0.9
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("1 message not delivered: it did not answer in time. The labels are not "
                          "affected")  # fmt: skip
    assert "2 messages not delivered: No such file or directory" in second
    assert SECRET_PATH not in first + second


def test_facts_that_cannot_be_told_do_not_end_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_event(*_: object) -> Any:
        raise KeyError("wide")

    monkeypatch.setattr(notifying, "run_event", no_event)
    tell(NotifyOptions(lineage=str(tmp_path / "events")), tmp_path / "labels")
    lines = map(without_time, capsys.readouterr().err.splitlines())
    assert list(lines) == ["--lineage: an event is not sent: KeyError"] * 2


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """An INPUT that there is, and an OUTPUT."""
    (tmp_path / "in").mkdir()
    return [str(tmp_path / "in"), str(tmp_path / "out")]


@pytest.mark.parametrize(
    ("result", "code", "outcome", "error"),
    [
        (lambda: 0, 0, "nothing_new", None),
        (lambda: 3, 3, "too_many_failed", None),
        (CommandFailed("no space at s3://k:5ecre7@b/x"), 1, "failed", "no space at s3://b/x"),
        (InputError("INPUT does not exist"), 2, "refused", "INPUT does not exist"),
        (KeyError("x"), 1, "failed", "internal error: KeyError: 'x'"),
        (KeyboardInterrupt(), 1, "interrupted", "interrupted"),
        (SystemExit(15), 1, "interrupted", "interrupted"),
    ],
)
def test_the_end_of_a_command_is_told_as_its_user_sees_it(
    result: Callable[[], int] | BaseException,
    code: int,
    outcome: str,
    error: str | None,
    receiver: Webhook,
    places: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def label(options: LabelOptions, *_: object) -> int:
        if isinstance(result, BaseException):
            raise result
        return result()

    monkeypatch.setattr("jobs.label.label.label", label)
    assert main(["label", *places, "--notify", receiver.url]) == code
    (request,) = receiver.requests
    data = request.document["data"]
    assert (data["exit_code"], data["outcome"], data["error"]) == (code, outcome, error)
    assert main(["label", *places, "--notify", receiver.url, "--dry-run"]) == code
    assert len(receiver.requests) == 1


def test_a_receiver_that_is_away_changes_no_exit_code(
    places: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.label.label.label", lambda *_: 0)
    with webhook(Answer(404)) as receiver:
        assert main(["label", *places, "--notify", receiver.url]) == 0
    printed = capsys.readouterr().err
    assert "1 message not delivered: it answered 404" in printed
    assert SECRET_PATH not in printed
