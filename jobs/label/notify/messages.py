"""The messages of --notify: a JSON document for programs, and Slack's form for people."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from jobs.label.notify.announced_run import (
    DONE,
    ENDED,
    INTERRUPTED,
    NOTHING_NEW,
    AnnouncedCommand,
    AnnouncedRun,
)
from pipeline.schema import OK
from pipeline.storage.urls import mask

LEFT_OUT = frozenset({"timeline"})  # of a report: it is for charts, and long
# Slack's limits in characters: https://docs.slack.dev/reference/block-kit/blocks
HEADER, SECTION, FIELD = 150, 3000, 2000
SHOWN_REASONS = 5  # reasons of failed images in a message for people


def report_message(command: AnnouncedCommand, now: datetime) -> dict[str, Any]:
    """The JSON document. Its form is that which Standard Webhooks recommends."""
    images = command.images()
    return {
        "type": f"label.{command.outcome}",
        "timestamp": now.astimezone(UTC).isoformat(timespec="milliseconds"),
        "data": {
            "outcome": command.outcome,
            "exit_code": command.ending.exit_code,
            "error": command.ending.error,
            "input": mask(command.input),
            "output": mask(command.output),
            "images": dict(images),
            "detections": command.total("detections") or 0,
            "usd": command.total("usd"),
            "runs": [_run(command, run) for run in command.runs],
            "version": version("detr-batch"),
        },
    }


def _run(command: AnnouncedCommand, run: AnnouncedRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "state": run.state,
        "resumed": run.resumed,
        "error": run.error,
        "model": run.model,
        "model_fingerprint": run.fingerprint,
        "computation": run.computation,
        "page": command.page_of(run),
        "report": {name: value for name, value in run.figures.items() if name not in LEFT_OUT},
    }


def slack_message(command: AnnouncedCommand, now: datetime) -> dict[str, Any]:
    """The message for an incoming webhook of Slack: a text for notifications, and its blocks."""
    headline = _headline(command)
    places = f"{_code(command.input)} to {_code(command.output)}"
    blocks = [
        {"type": "header", "text": {"type": "plain_text", "text": headline[:HEADER]}},
        _section(places),
    ]
    if command.ending.error:
        blocks.append(_section(_escaped(command.ending.error)))
    if figures := _figures(command):
        fields = [
            {"type": "mrkdwn", "text": f"*{name}*\n{_escaped(value)}"[:FIELD]}
            for name, value in figures.items()
        ]
        blocks.append({"type": "section", "fields": fields})
    lines = [line for run in command.runs for line in _run_as_lines(command, run)]
    if lines:
        blocks.append({"type": "context", "elements": [_text("\n".join(lines))]})
    return {"text": f"{headline}: {mask(command.output)}"[:SECTION], "blocks": blocks}


def _headline(command: AnnouncedCommand) -> str:
    images = command.images()
    labelled = f"{images[OK]:,} {'image' if images[OK] == 1 else 'images'} labelled"
    return {
        DONE: f"detr-batch: {labelled}",
        NOTHING_NEW: "detr-batch: nothing new to label",
        ENDED: f"detr-batch: a budget ended the run, {labelled}",
        "too_many_failed": f"detr-batch: too many images failed, {labelled}",
        "refused": "detr-batch: label was refused",
        INTERRUPTED: "detr-batch: label was interrupted",
    }.get(command.outcome, f"detr-batch: label failed (exit code {command.ending.exit_code})")


def _figures(command: AnnouncedCommand) -> Mapping[str, str]:
    """What people look at first, by name; empty if there was no run."""
    if not command.runs:
        return {}
    images = command.images()
    failed = [(name, number) for name, number in images.most_common() if name != OK]
    reasons = ", ".join(f"{number:,} {name}" for name, number in failed[:SHOWN_REASONS])
    last = command.runs[-1].figures
    rate = last.get("images_per_second_steady") or last.get("images_per_second")
    usd = command.total("usd")
    known = {
        "Images": f"{images[OK]:,} labelled",
        "Failed": reasons or "none",
        "Boxes": f"{command.total('detections') or 0:,.0f}",
        "Rate": rate and f"{rate:,.1f} images/s",
        "Cost": None if usd is None else f"{usd:,.4f} USD",
        "Model": f"{command.runs[-1].model} in {command.runs[-1].computation}",
    }
    return {name: value for name, value in known.items() if value}


def _run_as_lines(command: AnnouncedCommand, run: AnnouncedRun) -> list[str]:
    resumed = ", which an earlier command began" if run.resumed else ""
    page = command.page_of(run)
    return [f"run {run.run_id}{resumed}: {run.state}", *([f"page: {_code(page)}"] if page else [])]


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _text(text)}


def _text(text: str) -> dict[str, str]:
    return {"type": "mrkdwn", "text": text[:SECTION]}


def _code(url: str) -> str:
    return f"`{_escaped(mask(url)).replace('`', chr(39))}`"


def _escaped(text: str) -> str:
    """The text with the characters escaped that Slack takes for links and mentions."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
