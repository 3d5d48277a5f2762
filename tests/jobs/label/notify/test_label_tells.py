"""`label` itself tells of its runs: of one that is ended from outside, resumed, and of none."""

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier

from tests.jobs.label.notify.test_lineage import read_event
from tests.support.labelling import put_images
from tests.support.tables import rows
from tests.support.webhooks import SECRET_PATH, Answer, Webhook, webhook

pytestmark = pytest.mark.slow
KEY = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"
SECONDS = 180  # longest wait for one command on a busy machine


class Lake:
    """Three images and a broken one, and `label` over them without Ray."""

    def __init__(self, folder: Path, notify: Webhook, lineage: Webhook):
        self.folder, self.output = folder, str(folder / "labels")
        (folder / "photos" / "deep" / "er").mkdir(parents=True)
        put_images(str(folder / "photos"))
        self._environment = {
            **os.environ,
            "DETR_BATCH_NOTIFY_SECRET": KEY,
            "HOOK": notify.url,
            "LINEAGE": lineage.url,
        }

    def start(self, *options: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.support.alone", "label"]
        command += [str(self.folder / "photos"), self.output, "--model", "shapes-tiny", "--no-page"]
        command += ["--notify", "env:HOOK", "--lineage", "env:LINEAGE", "--usd-per-hour", "3.6"]
        return subprocess.Popen(
            [*command, *options],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def label(self, *options: str) -> tuple[int, str]:
        """Run to the end; return the exit code and what was printed."""
        process = self.start(*options)
        printed, _ = process.communicate(timeout=SECONDS)
        return process.returncode, printed

    def files(self) -> bytes:
        return b"".join(f.read_bytes() for f in Path(self.output).rglob("*") if f.is_file())


def wait_until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def told(receiver: Webhook) -> Any:
    """The data of the newest message, whose signature is right."""
    request = receiver.requests[-1]
    return Verifier(KEY).verify(request.body, dict(request.headers))["data"]


def states(receiver: Webhook) -> list[str]:
    """The states of the runs that the receiver was told, in the order of the events."""
    return [str(read_event(one.document).eventType).split(".")[-1] for one in receiver.requests]


def test_a_run_that_is_ended_resumed_and_repeated_is_told_each_time(tmp_path: Path) -> None:
    with webhook() as notify, webhook() as lineage:
        lake = Lake(tmp_path, notify, lineage)
        process = lake.start()
        wait_until(lambda: lineage.requests or process.poll() is not None)  # the run has begun
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 1, printed
        assert "ended; the same command takes it up again" in printed
        assert (told(notify)["outcome"], states(lineage)) == ("interrupted", ["START", "ABORT"])
        code, resumed = lake.label("--max-failed-fraction", "0")
        assert code == 3, resumed
        data = told(notify)
        assert (data["outcome"], data["images"]) == ("too_many_failed", {"ok": 3, "undecodable": 1})
        assert [(run["resumed"], run["state"]) for run in data["runs"]] == [(True, "published")]
        assert data["usd"] == pytest.approx(data["runs"][0]["report"]["wall_seconds"] / 1000, 0.1)
        assert states(lineage) == ["START", "ABORT", "START", "COMPLETE"]
        assert len({one.document["run"]["runId"] for one in lineage.requests}) == 1
        code, repeated = lake.label()
        assert (code, told(notify)["outcome"]) == (0, "nothing_new")
        assert len(lineage.requests) == 4
    for secret in (SECRET_PATH, KEY.removeprefix("whsec_")):
        assert secret not in printed + resumed + repeated
        assert secret.encode() not in lake.files()


def test_labels_are_published_though_nobody_can_be_told(tmp_path: Path) -> None:
    with webhook(*[Answer(500)] * 9) as notify, webhook(*[Answer(404)] * 9) as lineage:
        lake = Lake(tmp_path, notify, lineage)
        code, printed = lake.label()
    assert code == 0, printed
    assert "--notify http://127.0.0.1" in printed
    assert "1 message not delivered: it answered 500 (3 of 3 attempts)" in printed
    assert "2 messages not delivered: it answered 404" in printed
    assert SECRET_PATH not in printed
    assert rows(lake.output, "SELECT count(*) FROM images WHERE status = 'ok'") == [(3,)]


def test_a_command_that_is_refused_is_told_too(tmp_path: Path) -> None:
    with webhook() as notify:
        command = [sys.executable, "-m", "jobs.cli", "label", str(tmp_path / "gone"), "labels"]
        done = subprocess.run(
            [*command, "--model", "shapes-tiny", "--notify", "env:HOOK"],
            env={**os.environ, "DETR_BATCH_NOTIFY_SECRET": KEY, "HOOK": notify.url},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert done.returncode == 2 and "does not exist" in done.stderr
    (request,) = notify.requests
    assert b"does not exist" in request.body
