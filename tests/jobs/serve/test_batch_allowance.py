"""A key's limit of images holds in batches too: in a day, they may have what its minutes allow."""

import time
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError

from jobs.label.options import LabelOptions
from jobs.serve.batches import records
from jobs.serve.batches.run import LabelRun, Variables
from jobs.serve.engine.engine import Engine
from jobs.serve.http.keys import add_key
from jobs.serve.settings.settings import ApiSettings
from pipeline.storage.image_hosts import ImageHosts
from tests.support.batching import StandingRun, batching, client_of, create, request, wait_for

IMAGES = [f"https://example.com/{n}.jpg" for n in range(4)]


def start_waiting(_: LabelOptions, __: Variables) -> LabelRun:
    return StandingRun()


def test_batches_of_a_key_have_what_its_minutes_allow_in_a_day(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MINUTES_OF_DAY", 3)  # 6 images
    file = str(tmp_path / "keys.json")
    _, limited = add_key(file, "limited", scope="team", images_per_minute=2)
    _, free = add_key(file, "free", scope="team")
    with batching(str(tmp_path), engine, ApiSettings(keys=file), start_waiting) as address:
        client = client_of(address, limited)

        def failure(images: list[str]) -> str:
            batch = wait_for(client, create(client, [request("a", images)]), "failed")
            assert batch.errors and batch.errors.data
            (error,) = batch.errors.data
            assert error.code == "rate_limit_exceeded"
            return error.message or ""

        def pass_with(images: list[str], key: str) -> None:
            asking = client_of(address, key)
            batch = wait_for(asking, create(asking, [request("a", images)]), "in_progress")
            assert batch.request_counts and batch.request_counts.total == len(images)
            asking.batches.cancel(batch.id)
            wait_for(asking, batch, "cancelled")

        assert "7 images" in (said := failure([*IMAGES, *IMAGES[:3]])) and "6 are left" in said
        assert "smaller" in said
        pass_with(IMAGES, limited)
        assert "2 are left for 1440 minutes: create it again then." in failure(IMAGES)
        pass_with(IMAGES[:2], limited)
        assert "0 are left" in failure(IMAGES[:1])
        pass_with([*IMAGES, *IMAGES], free)


def test_the_count_stands_in_the_store(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MINUTES_OF_DAY", 3)  # 6 images
    file = str(tmp_path / "keys.json")
    _, key = add_key(file, "limited", images_per_minute=2)
    settings = ApiSettings(keys=file)

    def ended(images: list[str], status: str) -> str:
        """What a server that was just started says to a batch of images, once it has the status."""
        with batching(str(tmp_path), engine, settings, start_waiting) as address:
            client = client_of(address, key)
            batch = wait_for(client, create(client, [request("a", images)]), status)
            if status == "in_progress":
                client.batches.cancel(batch.id)
                wait_for(client, batch, "cancelled")
            errors = batch.errors.data if batch.errors else None
            return "".join(error.message or "" for error in errors or [])

    hours = 3600
    start = time.time()
    for after, count, status, text in (
        (0, 4, "in_progress", ""),
        (12 * hours, 2, "in_progress", ""),
        (13 * hours, 2, "failed", "0 are left for 660 minutes"),  # until 24 h
        (13 * hours, 5, "failed", "0 are left for 1380 minutes"),  # until 36 h
        (24 * hours + 60, 4, "in_progress", ""),
        (24 * hours + 60, 1, "failed", "0 are left for 719 minutes"),
    ):
        monkeypatch.setattr(time, "time", lambda after=after: start + after)
        said = ended([f"https://example.com/{n}.jpg" for n in range(count)], status)
        assert text in said


def test_a_key_with_a_limit_of_images_labels_no_lakes(tmp_path: Path, engine: Engine) -> None:
    file = str(tmp_path / "keys.json")
    _, limited = add_key(file, "limited", images_per_minute=2)
    settings = ApiSettings(
        keys=file, hosts=ImageHosts.of(["s3://lake/in"]), batch_outputs=("s3://lake/out",)
    )
    options: Any = {"endpoint": "/v1/detections", "completion_window": "24h"}
    options["metadata"] = {"input": "s3://lake/in/a", "output": "s3://lake/out/a"}
    with batching(str(tmp_path), engine, settings, start_waiting) as address:
        with pytest.raises(APIStatusError, match="images-per-minute") as raised:
            client_of(address, limited).batches.create(input_file_id="none", **options)
        assert raised.value.status_code == 403 and raised.value.code == "images_limited"
