"""Messages leave in their order, and a slow receiver costs a run no time."""

import threading
import time
from typing import Any

import pytest

from jobs.label.log.lines import without_time
from jobs.label.notify.outbox import Outbox
from jobs.label.notify.post import NotDelivered


def test_messages_are_delivered_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    delivered: list[dict[str, Any]] = []
    outbox = Outbox("--notify", delivered.append)
    for number in range(5):
        outbox.put({"number": number})
    outbox.close(time.monotonic() + 5)
    assert [message["number"] for message in delivered] == list(range(5))
    assert capsys.readouterr().err == ""


def test_a_receiver_that_never_answers_is_waited_for_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    never = threading.Event()

    def wait(_: dict[str, Any]) -> None:
        never.wait()

    outbox = Outbox("--lineage", wait)
    began = time.monotonic()
    outbox.put({})
    outbox.put({})
    assert time.monotonic() - began < 0.1
    outbox.close(time.monotonic() + 0.2)
    assert time.monotonic() - began < 1
    assert without_time(capsys.readouterr().err) == (
        "--lineage: 2 messages not delivered: it did not answer in time. The labels are not "
        "affected\n"
    )
    never.set()


def test_one_line_says_why_messages_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(message: dict[str, Any]) -> None:
        if message["number"] == 0:
            raise NotDelivered("it answered 503")
        if message["number"] == 1:
            raise RuntimeError("with url: /secret")

    outbox = Outbox("--lineage", refuse)
    for number in range(3):
        outbox.put({"number": number})
    outbox.close(time.monotonic() + 5)
    assert without_time(capsys.readouterr().err) == (
        "--lineage: 2 messages not delivered: it answered 503. The labels are not affected\n"
    )


def test_nothing_is_said_where_nothing_was_sent(capsys: pytest.CaptureFixture[str]) -> None:
    Outbox("--notify", lambda message: None).close(time.monotonic())
    assert capsys.readouterr().err == ""
