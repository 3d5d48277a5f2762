"""The command as a user runs it: Ray Serve, its replicas, and OpenAI's client in front of them."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import openai
import psutil
import pytest

from jobs.cluster.placement import placement_on
from jobs.cluster.start import alive_nodes
from jobs.output.views import connect
from jobs.serve.deploy import application, end, start
from jobs.serve.engine.detectors import Detecting
from jobs.serve.engine.spec import EngineSpec, local_engine_spec
from jobs.serve.serve import free_port
from jobs.serve.settings.options import ServeOptions
from pipeline.storage.errors import CommandFailed
from tests.support.coroutines import run_coroutine

pytestmark = pytest.mark.slow
SECONDS_TO_START, SECONDS_TO_END = 180.0, 20.0
SECONDS_OF_BATCH = 180.0
PHOTOS = 12
QUEUE = 16
BOXES = (
    "SELECT label, score, x_min, y_min, x_max, y_max FROM detections "
    "WHERE parse_filename(image_id) = ? ORDER BY detection"
)


class Command:
    """A `detr-batch serve` that runs, and what it says."""

    def __init__(self, folder: Path, *words: str):
        self.stderr = folder / "stderr.txt"
        command = [sys.executable, "-m", "jobs.cli", "serve", "--model", "shapes-tiny", *words]
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
            )

    def wait_until_it_listens(self) -> str:
        """The address that it prints, or what it said instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on http://"), self.stderr.read_text()
        return line.split()[-1]

    def replicas(self, name: str) -> list[psutil.Process]:
        """The processes of a deployment."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in children if f":{name}" in " ".join(one.cmdline()[:1])]

    def end(self, sign: signal.Signals) -> float:
        """End it by a signal to its group, as a terminal does. The seconds that it took."""
        began = time.monotonic()
        os.killpg(self.process.pid, sign)
        self.process.wait(SECONDS_TO_END)
        return time.monotonic() - began


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[Command]:
    command = Command(folder, *words)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.kill()
        command.process.wait()


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    folder = tmp_path_factory.mktemp("serve")
    words = ["--port", "0", "--precision", "fp32", "--max-queue", str(QUEUE), "--max-images", "8"]
    with serving(folder, *words, "--batches", str(folder / "batches")) as running:
        yield running


@pytest.fixture(scope="module")
def url(command: Command) -> str:
    return command.wait_until_it_listens()


@pytest.fixture(scope="module")
def photos(testdata: Path) -> list[Path]:
    return sorted((testdata / "coco" / "images" / "val2017").glob("*.jpg"))[:PHOTOS]


def data_uri(photo: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(photo.read_bytes()).decode()}"


def body_of(photos: list[Path]) -> dict[str, Any]:
    images = [data_uri(photo) for photo in photos]
    return {"model": "shapes-tiny", "images": images, "threshold": 0}


def ask(url: str, photos: list[Path]) -> list[dict[str, Any]]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    found = client.post("/detections", body=body_of(photos), cast_to=object)
    assert isinstance(found, dict)
    return list(found["data"])


def test_boxes_are_those_of_label_bit_for_bit(url: str, photos: list[Path], tmp_path: Path) -> None:
    lake = tmp_path / "photos"
    lake.mkdir()
    for photo in photos:
        (lake / photo.name).symlink_to(photo)
    command = [sys.executable, "-m", "jobs.cli", "label", str(lake), str(tmp_path / "labels")]
    command += ["--model", "shapes-tiny", "--precision", "fp32", "--score-threshold", "0"]
    subprocess.run([*command, "--no-page"], check=True, capture_output=True)
    labels = connect(str(tmp_path / "labels"))
    answers = ask(url, photos[:8]) + ask(url, photos[8:])
    for photo, answer in zip(photos, answers, strict=True):
        expected = labels.execute(BOXES, [photo.name]).fetchall()
        found = [(one["label"], one["score"], *one["box"]) for one in answer["detections"]]
        assert len(found) > 10
        assert found == expected, photo.name


def test_overload_is_refused_sooner_than_others_are_answered(url: str, photos: list[Path]) -> None:
    """More images than may wait: what is too much gets 503, and is told when to come again."""

    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0
        ) as client:
            asked = [timed(client) for _ in range(64)]
            return await asyncio.gather(*asked)

    async def timed(client: openai.AsyncOpenAI) -> tuple[float, Any]:
        began = time.monotonic()
        try:
            await client.post("/detections", body=body_of(photos[:1]), cast_to=object)
        except openai.InternalServerError as error:
            return time.monotonic() - began, error
        return time.monotonic() - began, None

    found = run_coroutine(ask_all())
    refused = [(seconds, error) for seconds, error in found if error is not None]
    assert len(found) - len(refused) >= QUEUE
    assert len(refused) > 8
    assert {error.status_code for _, error in refused} == {503}
    assert all(error.response.headers["retry-after"] for _, error in refused)
    answered = [seconds for seconds, error in found if error is None]
    assert median(seconds for seconds, _ in refused) < median(answered)
    print(f"refused within {max(seconds for seconds, _ in refused):.2f} s")
    assert ask(url, photos[:1])[0]["status"] == "ok"


def test_batch_has_the_boxes_of_requests(url: str, photos: list[Path]) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    lines = [
        {"custom_id": one.name, "method": "POST", "url": "/v1/detections", "body": body_of([one])}
        for one in photos[:3]
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file = client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
    endpoint: Any = "/v1/detections"
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    until = time.monotonic() + SECONDS_OF_BATCH
    while batch.status not in ("completed", "failed") and time.monotonic() < until:
        time.sleep(1)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed" and batch.output_file_id, batch
    answered = [
        json.loads(line) for line in client.files.content(batch.output_file_id).iter_lines()
    ]
    found = {one["custom_id"]: one["response"]["body"]["data"][0] for one in answered}
    for photo, expected in zip(photos, ask(url, photos[:3]), strict=False):
        assert found[photo.name]["detections"] == expected["detections"]


def test_replica_that_dies_is_replaced(command: Command, url: str, photos: list[Path]) -> None:
    before = {one.pid for one in command.replicas("Detecting")}
    assert before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    (answer,) = ask(url, photos[:1])
    assert answer["status"] == "ok" or answer["error"]["code"] == "worker_crash"
    until = time.monotonic() + 60
    while time.monotonic() < until and not command.replicas("Detecting"):
        time.sleep(0.5)
    assert ask(url, photos[:1])[0]["status"] == "ok"
    assert not before & {one.pid for one in command.replicas("Detecting")}


def test_port_of_a_running_endpoint_is_refused(url: str, tmp_path: Path) -> None:
    with serving(tmp_path, "--port", url.rpartition(":")[2]) as second:
        assert second.process.wait(60) == 2
        (line,) = second.stderr.read_text().splitlines()
        assert "give another --port" in line


def test_ctrl_c_ends_it_without_a_trace(command: Command, url: str) -> None:
    """The last test of this endpoint."""
    group = psutil.Process(command.process.pid).children(recursive=True)
    assert command.end(signal.SIGINT) < SECONDS_TO_END
    assert command.process.returncode == 0
    said = command.stderr.read_text()
    assert "Traceback" not in said and "ray" not in said.replace("starting Ray", "").lower(), said
    _, alive = psutil.wait_procs(group, timeout=10)
    assert not alive


def test_sigterm_ends_it_while_it_starts(tmp_path: Path) -> None:
    with serving(tmp_path, "--port", "0") as starting:
        until = time.monotonic() + 60
        while time.monotonic() < until and not starting.replicas("Decoding"):
            time.sleep(0.2)
        starting.process.send_signal(signal.SIGTERM)
        assert starting.process.wait(SECONDS_TO_END) == 0
        assert "Traceback" not in starting.stderr.read_text()


class Broken(Detecting):
    """A detector that cannot start."""

    def __init__(self, spec: EngineSpec):
        raise ValueError("its weights are of another model")


def test_replica_that_cannot_start_says_why(local_ray: None) -> None:
    options = ServeOptions(model="shapes-tiny", device="cpu")
    nodes = list(alive_nodes().values())
    placement = placement_on(options.machines(), nodes, cluster=False)
    app = application(options, local_engine_spec(options), placement, (Broken, ()))
    with pytest.raises(CommandFailed, match=r"does not start: .*its weights are of another model"):
        start(app, "127.0.0.1", free_port("127.0.0.1", 0), on_cluster=False)
    end()
