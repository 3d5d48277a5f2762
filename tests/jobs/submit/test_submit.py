"""`detr-batch submit` to a real Ray of several nodes: a head, a CPU node, an accelerator node."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from jobs.cli import main, parser
from jobs.cli.submit import words_on_the_cluster
from jobs.label.options import LabelOptions
from jobs.output.views import connect
from pipeline.storage.files import open_location
from tests.support.s3_server import READER, free_ports

ACCELERATOR = {"ray.io/accelerator-type": "A10G"}
OPTIONS = ["--model", "shapes-tiny", "--device", "cpu", "--no-page"]
ON_ACCELERATOR = [*OPTIONS, "--detect-on", "ray.io/accelerator-type=A10G"]


class Lake:
    """A cluster with a job server."""

    def __init__(self) -> None:
        port, agent = free_ports(2)
        # As an image has it: jobs start the `python` that the shell finds.
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
        # By default all Rays of a machine want one port for it, and the first gets it.
        head["dashboard_agent_listen_port"] = agent
        self.ray = Cluster(initialize_head=True, head_node_args=head)
        self.ray.add_node(num_cpus=1)
        self.accelerator = self.add_accelerator()
        self.server = f"http://{self.ray.webui_url}"

    def add_accelerator(self) -> Any:
        return self.ray.add_node(num_cpus=1, labels=ACCELERATOR)

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`detr-batch submit` of somebody who has no credentials of the bucket."""
        command = [sys.executable, "-m", "jobs.cli", "submit", *words, "--address", self.server]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=180, env=environment, check=False
        )

    def status(self, source: str, output: str) -> dict[str, Any]:
        said = self.submit(source, output, "--status", "--json")
        document: dict[str, Any] = json.loads(said.stdout)
        return document

    def nodes_of(self, actor: str) -> set[str]:
        """Nodes on which actors of such a class have been."""
        found = list_actors(address=self.server, limit=1000, detail=True)
        return {one.node_id for one in found if actor in f"{one.class_name} {one.repr_name}"}


@pytest.fixture(scope="module")
def cluster(s3: None) -> Iterator[Lake]:
    lake = Lake()
    yield lake
    lake.ray.shutdown()


def fill(url: str, images: int) -> None:
    fs, path = open_location(url, "INPUT")
    for index in range(images):
        pixels = np.random.default_rng(index).integers(0, 255, (70, 90, 3), np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        fs.pipe_file(f"{path}/{index:04}.png", data.getvalue())


def rows(output: str) -> list[Any]:
    return connect(output).sql("SELECT status, count(*) FROM images GROUP BY ALL").fetchall()


@pytest.mark.slow
@pytest.mark.ci
def test_job_labels_a_bucket_where_it_is_told_to(cluster: Lake, bucket: str) -> None:
    source, output = f"{bucket}/in", f"{bucket}/out"
    fill(source, 12)
    fs, path = open_location(source, "INPUT")
    fs.pipe_file(f"{path}/broken.jpg", b"no picture")
    planned = cluster.submit(source, output, *ON_ACCELERATOR, "--dry-run")
    assert planned.returncode == 0, planned
    assert "1 of 0.5 CPU and 0.5 GiB of memory on nodes with ray.io/acc" in planned.stdout
    assert "stagers on nodes with ray.io/accelerator-type=!in(A10G)" in planned.stdout
    done = cluster.submit(source, output, *ON_ACCELERATOR, "--max-failed-fraction", "0")
    assert done.returncode == 3, done  # the job's own
    assert "12 images labelled, 1 failed" in done.stdout
    assert sorted(rows(output)) == [("ok", 12), ("undecodable", 1)]
    assert cluster.nodes_of("Detector") == {cluster.accelerator.node_id}
    assert cluster.nodes_of("Preparer").isdisjoint({cluster.accelerator.node_id})
    again = cluster.submit(source, output, *ON_ACCELERATOR)
    assert again.returncode == 0, again
    assert "nothing new" in again.stdout
    status = cluster.status(source, output)
    assert status["status"] == "SUCCEEDED"
    assert status["job"].endswith("-2")


@pytest.mark.slow
def test_job_outlives_a_node_and_is_not_submitted_twice(cluster: Lake, bucket: str) -> None:
    source, output = f"{bucket}/in", f"{bucket}/out"
    fill(source, 400)
    started = cluster.submit(source, output, *ON_ACCELERATOR, "--no-wait")
    assert started.returncode == 0, started
    fs, path = open_location(output, "OUTPUT")
    until = time.monotonic() + 90
    while not fs.glob(f"{path}/_staging/*/blocks/*"):
        assert time.monotonic() < until, "no block was staged"
        time.sleep(0.2)
    again = cluster.submit(source, output, *ON_ACCELERATOR)
    assert again.returncode == 2
    assert "labels into" in again.stderr
    cluster.ray.remove_node(cluster.accelerator, allow_graceful=False)
    cluster.accelerator = cluster.add_accelerator()
    until = time.monotonic() + 150
    while (status := cluster.status(source, output))["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < until, "the job did not end"
        time.sleep(1)
    assert status["status"] == "SUCCEEDED", status
    assert rows(output) == [("ok", 400)]


@pytest.mark.slow
def test_stopped_job_is_taken_up_by_the_next(cluster: Lake, bucket: str) -> None:
    source, output = f"{bucket}/in", f"{bucket}/out"
    fill(source, 200)
    words = [source, output, *OPTIONS, "--env", "DETR_BATCH_LEASE_SECONDS=4"]
    assert cluster.submit(*words, "--no-wait").returncode == 0
    fs, path = open_location(output, "OUTPUT")
    until = time.monotonic() + 90
    while not fs.glob(f"{path}/_staging/*/blocks/*"):
        assert time.monotonic() < until, "no block was staged"
        time.sleep(0.2)
    stopped = cluster.submit(source, output, "--stop")
    assert "STOPPED" in stopped.stdout, stopped
    assert cluster.status(source, output)["status"] == "STOPPED"
    done = cluster.submit(*words)
    assert done.returncode == 0, done
    assert rows(output) == [("ok", 200)]


def nothing_in(output: str) -> bool:
    """Whether no object is below `output`; the server keeps folders for a while, S3 has none."""
    fs, path = open_location(output, "OUTPUT")
    return not [name for name in fs.find(path) if name != path]


@pytest.mark.slow
def test_cluster_that_cannot_hold_the_run_is_said_within_a_minute(
    cluster: Lake, bucket: str
) -> None:
    fill(f"{bucket}/in", 1)
    began = time.monotonic()
    words = [f"{bucket}/in", f"{bucket}/out", "--weights", "random", "--device", "cuda"]
    done = cluster.submit(*words, "--num-gpus", "2-4")
    assert done.returncode == 2, done
    assert "2 detectors want 1 GPU and 2.0 GiB of memory each, and 0 fit" in done.stdout
    assert "It has 3 nodes with 2 CPUs and 0 GPUs" in done.stdout
    assert time.monotonic() - began < 60
    assert nothing_in(f"{bucket}/out")


@pytest.mark.slow
def test_output_that_the_cluster_may_not_write_is_refused(cluster: Lake, bucket: str) -> None:
    fill(f"{bucket}/in", 1)
    done = cluster.submit(f"{bucket}/in", "s3://not-theirs/out", *OPTIONS)
    assert done.returncode == 2
    assert "OUTPUT s3://not-theirs/out" in done.stdout


@pytest.mark.slow
def test_node_whose_role_is_another_is_said_before_anything_is_computed(
    cluster: Lake, bucket: str
) -> None:
    fill(f"{bucket}/in", 1)
    node = cluster.ray.add_node(num_cpus=1, env_vars={"AWS_ACCESS_KEY_ID": READER})
    try:
        done = cluster.submit(f"{bucket}/in", f"{bucket}/out", *OPTIONS)
    finally:
        cluster.ray.remove_node(node)
    assert done.returncode == 2, done
    assert f"cannot write OUTPUT: {bucket}/out is forbidden" in done.stdout
    assert nothing_in(f"{bucket}/out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["./photos", "s3://b/out"], "absolute path"),
        (["s3://b/in", "https://b.com/out?X-Amz-Signature=abc"], "carries a secret"),
        (["s3://b/in", "s3://b/out", "--env", "AWS_SECRET_ACCESS_KEY=a"], "would show it"),
        (["s3://b/in", "s3://b/out", "--env", "AZURE_STORAGE_KEY=a"], "would show it"),
        (["s3://b/in", "s3://b/out", "--env", "AWS_ENDPOINT_URL=http://u:p@h"], "would show it"),
        (["s3://b/in", "s3://b/out", "--num-gpus", "4-2"], "--num-gpus 4-2"),
        (["s3://b/in", "s3://b/out", "--detect-on", "moon"], "KEY=VALUE"),
        (["s3://b/in", "s3://b/out", "--weights", "pyproject.toml"], "a path of this machine"),
        (["s3://b/in", "s3://b/out", "--address", "ray://head:10001"], "http://head:8265"),
        (
            ["s3://b/in", "s3://b/out", "--address", "http://127.0.0.1:1"],
            "no job server of Ray answers",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words if "--address" in words else [*words, "--address", "http://127.0.0.1:1"]
    assert main(["submit", *words]) == 2
    assert said in capsys.readouterr().err


def test_job_is_given_the_same_options() -> None:
    words = ["s3://b/in", "s3://b/out of", "--model", "shapes-tiny", "--num-gpus", "2-8", "--spot"]
    words += ["--no-page", "--score-threshold", "0", "--instance-type", "g6.xlarge", "--relabel"]
    given = vars(parser().parse_args(["label", *words, "--address", "auto"]))
    del given["run"], given["again"]
    options = LabelOptions(**given)
    again = vars(parser().parse_args(["label", *words_on_the_cluster(options)]))
    assert {name: again[name] for name in given} == given
    plain = parser().parse_args(["label", "in", "out", "--address", "auto"])
    assert words_on_the_cluster(LabelOptions("in", "out")) == ["in", "out", "--address", "auto"]
    assert plain.num_gpus == LabelOptions("in", "out").num_gpus


@pytest.mark.parametrize("package", ["torch", "fsspec"])
def test_python_without_the_packages_is_said_in_a_line(package: str) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None; from jobs.cli import main; "
        "sys.exit(main(['label', 'in', 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("detr-batch: this Python (")
    assert package in done.stderr
