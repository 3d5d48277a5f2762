"""The endpoint on a cluster: a Ray head of the test's own on loopback, with its job server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from openai import OpenAI

from tests.support.batching import client_of, create, lines_of, request, wait_for
from tests.support.ray_head import LOOPBACK, ray_head
from tests.support.s3_server import free_ports
from tests.support.serving import MODEL, data_uri, scene_file

pytestmark = pytest.mark.slow
COMMAND_SECONDS = 400.0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head with three CPUs."""
    dashboard, agent = free_ports(2)
    words = ["--num-cpus", "3", "--node-ip-address", LOOPBACK, "--include-dashboard=true"]
    words += ["--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)]
    variables = {
        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
        # Jobs run `python`, which is that of the image on a real cluster.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    folder = tmp_path_factory.mktemp("head")
    with ray_head(folder, words, variables, (dashboard,)) as head:
        yield head.address
        head.check()


def serve(address: str, *words: str, code: int = 0) -> str:
    """Run the command against the cluster; what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "serve", "--address", address, *words],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_detached_endpoint_answers_and_ends(address: str, tmp_path: Path) -> None:
    assert "no endpoint runs" in serve(address, "--status", code=2)
    (port,) = free_ports(1)
    options = ["--model", MODEL, "--port", str(port), "--batches", str(tmp_path / "batches")]
    said = serve(address, *options, "--device", "cpu", "--precision", "fp32", "--detach")
    assert f"listening on http://{LOOPBACK}:{port}" in said
    client = client_of(f"http://{LOOPBACK}:{port}")
    (found,) = boxes(client)
    assert found["status"] == "ok" and found["detections"]

    status = serve(address, "--status")
    assert "detr-batch: RUNNING" in status and "Batching: HEALTHY, 1 RUNNING" in status
    assert "Detecting: HEALTHY, 2 RUNNING" in status, "one of three detectors is for batches"
    assert "runs on this cluster already" in serve(address, *options, "--detach", code=2)
    assert boxes(client) == [found], "who was refused has ended nothing"

    lines = [request(str(n), [data_uri(scene_file(n))]) for n in range(3)]
    batch = wait_for(client, create(client, lines))
    assert batch.status == "completed", batch
    answers = lines_of(client, batch.output_file_id)
    (first,) = answers["0"]["response"]["body"]["data"]
    assert first["detections"] == found["detections"], "a batch has the boxes of a request"

    assert "has ended" in serve(address, "--stop")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{LOOPBACK}:{port}/health/live", timeout=5)
    assert "no endpoint runs" in serve(address, "--stop", code=2)


def boxes(client: OpenAI) -> list[dict[str, object]]:
    """The answer to a request with one image."""
    body = {"model": MODEL, "images": [data_uri(scene_file())]}
    found = client.post("/detections", body=body, cast_to=object)
    assert isinstance(found, dict)
    return list(found["data"])
