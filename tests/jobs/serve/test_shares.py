"""Requests and a batch at once, each with a detector of its own on one machine."""

import time
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from tests.jobs.serve.test_serve import serving
from tests.support.batching import ENDED, client_of, create, lines_of, request
from tests.support.serving import MODEL, data_uri, scene_file

pytestmark = pytest.mark.slow
IMAGES, SECONDS = 40, 300.0


def test_neither_requests_nor_batches_starve(tmp_path: Path) -> None:
    words = ["--port", "0", "--precision", "fp32", "--batches", str(tmp_path / "batches")]
    with serving(tmp_path, *words, "--batch-detectors", "1") as command:
        client = client_of(command.wait_until_it_listens())
        cpus = psutil.cpu_count() or 1
        assert len(command.replicas("Detecting")) == max(1, cpus - 1)
        image = scene_file()
        # Bytes behind the end of a JPEG make it another image.
        lines = [request(str(n), [data_uri(image + n.to_bytes(2))]) for n in range(IMAGES)]
        batch = create(client, lines)
        answered, most, until = 0, 0, time.monotonic() + SECONDS
        while batch.status not in ENDED and time.monotonic() < until:
            ask(client, image)
            most = max(most, detectors_of_label(command.process.pid))
            batch = client.batches.retrieve(batch.id)
            answered += batch.status == "in_progress"
        assert batch.status == "completed" and len(lines_of(client, batch.output_file_id)) == IMAGES
        assert answered > 3, "requests are answered while the batch runs"
        assert most == 1


def ask(client: OpenAI, image: bytes) -> None:
    body = {"model": MODEL, "images": [data_uri(image)]}
    found = client.post("/detections", body=body, cast_to=object)
    assert isinstance(found, dict) and found["data"][0]["status"] == "ok"


def detectors_of_label(pid: int) -> int:
    """The actors of a run of `label` that detect."""
    processes = psutil.Process(pid).children(recursive=True)
    names = []
    for one in processes:
        try:
            names.append(" ".join(one.cmdline()[:1]))
        except psutil.Error:
            continue
    return sum("MapWorker(MapBatches(Detector)" in name for name in names)
