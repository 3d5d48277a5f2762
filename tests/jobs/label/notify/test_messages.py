"""Messages have the figures of the report, and Slack's stay within its limits."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from jobs.label.notify.announced_run import Ending
from jobs.label.notify.messages import report_message, slack_message
from tests.jobs.label.notify.facts import (
    RUN_ID,
    begun_run,
    command,
    failed_run,
    kept_run,
    published_run,
)

NOW = datetime(2026, 1, 1, 2, 3, 4, tzinfo=UTC)


def test_the_message_has_the_figures_of_the_report() -> None:
    run = published_run(resumed=True)
    message = report_message(command(run), NOW)
    data = message["data"]
    assert (message["type"], data["outcome"], data["exit_code"]) == ("label.done", "done", 0)
    assert message["timestamp"] == "2026-01-01T02:03:04.000+00:00"
    assert data["images"] == {"ok": 5, "undecodable": 1}
    assert (data["detections"], data["usd"]) == (9, pytest.approx(7.2))
    (told,) = data["runs"]
    assert (told["run_id"], told["state"], told["resumed"]) == (RUN_ID, "published", True)
    assert told["page"] == f"s3://lake/labels/_runs/{RUN_ID}/report.html"
    assert told["report"] == {k: v for k, v in run.figures.items() if k != "timeline"}
    assert told["report"]["usd_per_1000_images"] == pytest.approx(1200)
    assert "5ecre7" not in json.dumps(message)


def test_figures_of_an_unfinished_and_a_new_run_add_up() -> None:
    data = report_message(command(published_run(), published_run()), NOW)["data"]
    assert data["images"] == {"ok": 10, "undecodable": 2}
    assert (data["detections"], data["usd"]) == (18, pytest.approx(14.4))


@pytest.mark.parametrize(
    ("runs", "ending", "outcome"),
    [
        ([], Ending(0), "nothing_new"),
        ([published_run()], Ending(3), "too_many_failed"),
        ([], Ending(2, "INPUT does not exist"), "refused"),
        ([failed_run("no space")], Ending(1, "no space"), "failed"),
        ([failed_run("interrupted", True)], Ending(1, "interrupted", True), "interrupted"),
        ([begun_run()], Ending(9), "failed"),
        ([published_run()], Ending(4), "ended_by_budget"),
        ([kept_run()], Ending(4), "ended_by_budget"),
        ([kept_run()], Ending(0), "ended_by_budget"),
    ],
)
def test_how_a_command_ended(runs: list[Any], ending: Ending, outcome: str) -> None:
    told = command(*runs, ending=ending)
    message = report_message(told, NOW)
    assert (message["type"], message["data"]["outcome"]) == (f"label.{outcome}", outcome)
    assert message["data"]["error"] == ending.error
    headline = slack_message(told, NOW)["blocks"][0]["text"]["text"]
    words = {
        "nothing_new": "nothing new",
        "too_many_failed": "too many images failed",
        "ended_by_budget": "a budget ended the run",
    }
    assert words.get(outcome, outcome) in headline


def test_a_failed_run_tells_what_it_came_to() -> None:
    data = report_message(command(failed_run("no space"), ending=Ending(1, "no space")), NOW)[
        "data"
    ]
    assert data["images"] == {"ok": 1, "truncated": 1}
    assert data["usd"] == 0.5
    assert (data["runs"][0]["error"], data["runs"][0]["page"]) == ("no space", None)


def test_slack_shows_what_people_look_at_first() -> None:
    message = slack_message(command(published_run()), NOW)
    assert message["text"] == "detr-batch: 5 images labelled: s3://lake/labels"
    text = json.dumps(message)
    for shown in ("5 labelled", "1 undecodable", "images/s", "7.2000 USD", "shapes-tiny", RUN_ID):
        assert shown in text
    assert "5ecre7" not in text


def test_messages_for_slack_stay_within_its_limits() -> None:
    endless = "<!channel> & " * 1000
    run = failed_run(endless)
    run.model = run.computation = endless
    message = slack_message(command(*[run] * 60, ending=Ending(1, endless)), NOW)
    assert 0 < len(message["text"]) <= 3000
    assert len(message["blocks"]) <= 50
    for block in message["blocks"]:
        texts = [block["text"]] if "text" in block else [*block.get("fields", ())]
        texts += block.get("elements", ())
        assert len(texts) <= 10
        most = {"header": 150, "section": 3000, "context": 3000}[block["type"]]
        most = 2000 if "fields" in block else most
        for text in texts:
            assert 0 < len(text["text"]) <= most
            assert "<!channel>" not in text["text"]
    assert "&lt;!channel&gt;" in json.dumps(message)
