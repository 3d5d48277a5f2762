"""A message is sent again where that may help, and not for longer than some seconds."""

import time
from email.utils import formatdate
from pathlib import Path

import pytest

from jobs.label.notify import post as posting
from jobs.label.notify.post import NotDelivered, post
from jobs.label.notify.receiver import Receiver
from tests.support.s3_server import free_ports
from tests.support.webhooks import SECRET_PATH, Answer, Webhook, webhook


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "FIRST_PAUSE", 0.02)


def send(url: str) -> None:
    post(Receiver("--notify", url), b"{}", lambda: {"webhook-id": "msg_1"})


def reason_of_failure(url: str) -> str:
    """Send, and return why it failed. No reason shows the address."""
    with pytest.raises(NotDelivered) as error:
        send(url)
    assert SECRET_PATH not in str(error.value)
    return str(error.value)


def ids(receiver: Webhook) -> list[str]:
    return [request.headers["webhook-id"] for request in receiver.requests]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_failure_is_repeated(status: int) -> None:
    with webhook(Answer(status), Answer(status)) as receiver:
        send(receiver.url)
    assert ids(receiver) == ["msg_1"] * 3
    assert receiver.requests[0].headers["content-type"] == "application/json"


def test_attempts_are_few() -> None:
    with webhook(*[Answer(502)] * 9) as receiver:
        assert reason_of_failure(receiver.url) == "it answered 502 (3 of 3 attempts)"
    assert len(receiver.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_a_lasting_failure_is_not_repeated(status: int) -> None:
    with webhook(*[Answer(status)] * 3) as receiver:
        assert reason_of_failure(receiver.url) == f"it answered {status}"
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with webhook() as elsewhere, webhook(Answer(status, {"Location": elsewhere.url})) as receiver:
        assert "a redirect" in reason_of_failure(receiver.url)
    assert not elsewhere.requests


def test_the_receiver_says_how_long_to_wait() -> None:
    with webhook(Answer(429, {"Retry-After": "1"})) as receiver:
        began = time.monotonic()
        send(receiver.url)
    assert 1 <= time.monotonic() - began < 5
    assert len(receiver.requests) == 2


@pytest.mark.parametrize("as_date", [False, True])
def test_a_receiver_that_asks_for_minutes_is_left_alone(as_date: bool) -> None:
    wait = formatdate(time.time() + 150, usegmt=True) if as_date else "150"
    with webhook(Answer(429, {"Retry-After": wait})) as receiver:
        assert "asks to wait for 1" in reason_of_failure(receiver.url)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("wait", ["soon", "-1", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_an_odd_time_to_wait_is_ignored(wait: str) -> None:
    with webhook(Answer(503, {"Retry-After": wait})) as receiver:
        send(receiver.url)
    assert len(receiver.requests) == 2


def test_a_receiver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "ANSWER_SECONDS", 0.1)
    with webhook(*[Answer(seconds=0.3)] * 3) as receiver:
        assert "it did not answer in time (3 of 3" in reason_of_failure(receiver.url)


def test_a_receiver_that_is_not_there() -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/{SECRET_PATH}"
    assert reason_of_failure(url) == "it cannot be reached (3 of 3 attempts)"


def test_all_attempts_end_within_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "PATIENCE", 0.5)
    with webhook(*[Answer(seconds=2)] * 3) as receiver:
        began = time.monotonic()
        reason_of_failure(receiver.url)
        assert time.monotonic() - began < 1.5


def test_credentials_of_the_home_folder_replace_no_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with webhook() as receiver:
        post(Receiver("--lineage", receiver.url), b"{}", lambda: {"Authorization": "Bearer k"})
    assert receiver.requests[0].headers["authorization"] == "Bearer k"
