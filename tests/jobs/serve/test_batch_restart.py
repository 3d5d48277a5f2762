"""A server that is killed in the middle of a batch, and one whose batch is cancelled."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from openai import OpenAI
from openai.types import Batch

from jobs.output.views import connect
from pipeline.storage.files import open_location
from tests.support.batching import (
    Request,
    client_of,
    create,
    create_lake,
    lines_of,
    request,
    wait_for,
)
from tests.support.serving import MODEL, data_uri, scene_file

pytestmark = pytest.mark.slow
LINES = 240
LEASE_SECONDS = "4"  # of the claims and locks that a killed server leaves behind
WAIT_SECONDS = 60.0


@contextmanager
def server(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`detr-batch serve` with batches below a folder and other options, and its address."""
    command = [sys.executable, "-m", "jobs.cli", "serve", "--model", MODEL, "--port", "0", *words]
    environment = {**os.environ, "DETR_BATCH_LEASE_SECONDS": LEASE_SECONDS}
    with (folder / "stderr.txt").open("a") as stderr:
        process = subprocess.Popen(
            [*command, "--batches", str(folder / "batches")],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on"), (folder / "stderr.txt").read_text()
        yield process, line.split()[-1]
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)


def many_lines() -> list[Request]:
    """Lines with as many distinct images: bytes behind the end of a JPEG make it another one."""
    image = scene_file()
    return [request(str(n), [data_uri(image + n.to_bytes(2))]) for n in range(LINES)]


def wait_for_progress(client: OpenAI, batch: Batch) -> Batch:
    """The batch, once some of its images are labelled, and not yet all of them."""
    until = time.monotonic() + 2 * WAIT_SECONDS
    while True:
        batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        assert counts is not None and batch.status in ("validating", "in_progress"), batch
        is_known = batch.metadata is None  # nobody has counted a lake
        if counts.completed > 0 and (counts.completed < counts.total or not is_known):
            return batch
        assert time.monotonic() < until, batch
        time.sleep(0.1)


def processes_of_label(folder: Path | str) -> list[psutil.Process]:
    """The processes that label into a folder, or a bucket."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "label" in words and any(str(folder) in word for word in words):
            found.append(process)
    return found


def test_a_batch_survives_its_server(tmp_path: Path) -> None:
    with server(tmp_path) as (process, address):
        client = client_of(address)
        batch = wait_for_progress(client, create(client, many_lines()))
        assert processes_of_label(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_SECONDS)
    psutil.wait_procs(processes_of_label(tmp_path), WAIT_SECONDS)
    assert not processes_of_label(tmp_path)
    with server(tmp_path) as (_, address):
        client = client_of(address)
        assert client.batches.retrieve(batch.id).status == "in_progress"
        batch = wait_for(client, batch)
        assert batch.status == "completed" and batch.error_file_id is None
        answers = lines_of(client, batch.output_file_id)
        assert len(answers) == LINES
        for line in answers.values():
            (image,) = line["response"]["body"]["data"]
            boxes = [(box["label"], *box["box"]) for box in image["detections"]]
            assert image["status"] == "ok" and len(boxes) == len(set(boxes)) > 0


def test_no_image_of_a_lake_is_labelled_twice_if_the_server_is_killed(
    tmp_path: Path, bucket: str
) -> None:
    """OUTPUT of a lake stays, and has each image once in all of its runs."""
    fs, path = open_location(f"{bucket}/in", "INPUT")
    image = scene_file()
    for number in range(LINES):
        fs.pipe_file(f"{path}/{number}.jpg", image + number.to_bytes(2))
    allowed = ["--allow-image-hosts", f"{bucket}/in", "--allow-batch-outputs", f"{bucket}/out"]
    output = f"{bucket}/out/labels"
    with server(tmp_path, *allowed) as (process, address):
        client = client_of(address)
        batch = create_lake(client, input=f"{bucket}/in", output=output)
        batch = wait_for_progress(client, batch)
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_SECONDS)
    running = processes_of_label(output)
    psutil.wait_procs(running, WAIT_SECONDS)
    assert not processes_of_label(output)
    with server(tmp_path, *allowed) as (_, address):
        batch = wait_for(client_of(address), batch)
    assert batch.status == "completed"
    with connect(output) as labels:
        rows = labels.execute("SELECT count(*), count(DISTINCT uri) FROM images").fetchall()
    assert rows == [(LINES, LINES)]


def test_a_cancelled_batch_ends_its_run(tmp_path: Path) -> None:
    with server(tmp_path) as (_, address):
        client = client_of(address)
        batch = wait_for_progress(client, create(client, many_lines()))
        client.batches.cancel(batch.id)
        assert wait_for(client, batch).status == "cancelled"
        assert not processes_of_label(tmp_path)
