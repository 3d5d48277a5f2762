"""`detr-batch submit` to a real Ray of several nodes: a head, a CPU node, an accelerator node."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from jobs.cli import main
from jobs.cli.submit import words_on_the_cluster
from jobs.label.log.lines import without_time
from jobs.label.options import LabelOptions
from jobs.output.views import connect
from jobs.submit.shipped_module import LocalModule
from jobs.submit.submit import Submission, submit
from pipeline.storage.files import InputError, open_location
from tests.support.detectors import OWN
from tests.support.parsed import label_options
from tests.support.s3_server import READER, free_ports

ACCELERATOR = {"ray.io/accelerator-type": "A10G"}
OPTIONS = ["--model", "shapes-tiny", "--device", "cpu", "--no-page"]
ON_ACCELERATOR = [*OPTIONS, "--detect-on", "ray.io/accelerator-type=A10G"]


class SubmitCluster:
    """A cluster with a job server."""

    def __init__(self) -> None:
        port, agent = free_ports(2)
        # Jobs start the `python` that the shell finds, as in a container image.
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
        # By default all Rays of a machine use the same port for this, and only the first gets it.
        head["dashboard_agent_listen_port"] = agent
        self.ray = Cluster(initialize_head=True, head_node_args=head)
        self.ray.add_node(num_cpus=1)
        self.accelerator = self.add_accelerator()
        self.server = f"http://{self.ray.webui_url}"

    def add_accelerator(self) -> Any:
        return self.ray.add_node(num_cpus=1, labels=ACCELERATOR)

    def submit(
        self, *arguments: str, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `detr-batch submit` in a folder, as a user without credentials for the bucket."""
        command = [sys.executable, "-m", "jobs.cli", "submit", *arguments, "--address", self.server]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=180, env=environment, check=False,
            cwd=folder,
        )  # fmt: skip

    def status(self, source: str, output: str) -> dict[str, Any]:
        done = self.submit(source, output, "--status", "--json")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def nodes_of(self, actor: str) -> set[str]:
        """Return the nodes on which actors of this class have been."""
        found = list_actors(address=self.server, limit=1000, detail=True)
        return {one.node_id for one in found if actor in f"{one.class_name} {one.repr_name}"}


@pytest.fixture(scope="module")
def cluster(s3: None) -> Iterator[SubmitCluster]:
    cluster = SubmitCluster()
    yield cluster
    cluster.ray.shutdown()


def fill_bucket(url: str, images: int) -> None:
    fs, path = open_location(url, "INPUT")
    for index in range(images):
        pixels = np.random.default_rng(index).integers(0, 255, (70, 90, 3), np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        fs.pipe_file(f"{path}/{index:04}.png", data.getvalue())


def count_images_by_status(output: str) -> list[Any]:
    return connect(output).sql("SELECT status, count(*) FROM images GROUP BY ALL").fetchall()


@pytest.mark.slow
def test_a_job_labels_a_bucket_on_the_chosen_nodes(cluster: SubmitCluster, bucket: str) -> None:
    source, output = f"{bucket}/in", f"{bucket}/out"
    fill_bucket(source, 12)
    fs, path = open_location(source, "INPUT")
    fs.pipe_file(f"{path}/broken.jpg", b"not an image")
    planned = cluster.submit(source, output, *ON_ACCELERATOR, "--dry-run", "--probe", "0")
    assert planned.returncode == 0, planned
    assert "1 of 0.5 CPU and 0.5 GiB of memory on nodes with ray.io/acc" in planned.stdout
    assert "stagers on nodes with ray.io/accelerator-type=!in(A10G)" in planned.stdout
    done = cluster.submit(source, output, *ON_ACCELERATOR, "--max-failed-fraction", "0")
    assert done.returncode == 3, done  # the exit code of the job
    assert re.search(r"12 images labelled with \d+ box(es)?, 1 failed", done.stdout), done.stdout
    assert sorted(count_images_by_status(output)) == [("ok", 12), ("undecodable", 1)]
    assert cluster.nodes_of("Detector") == {cluster.accelerator.node_id}
    assert cluster.nodes_of("Preparer").isdisjoint({cluster.accelerator.node_id})
    again = cluster.submit(source, output, *ON_ACCELERATOR)
    assert again.returncode == 0, again
    assert "nothing new" in again.stdout
    status = cluster.status(source, output)
    assert status["status"] == "SUCCEEDED"
    assert status["job"].endswith("-2")


@pytest.mark.slow
def test_a_job_has_the_module_of_a_user(
    cluster: SubmitCluster, bucket: str, tmp_path: Path
) -> None:
    source, output = f"{bucket}/in", f"{bucket}/out"
    fill_bucket(source, 3)
    (tmp_path / "detectors").mkdir()
    (tmp_path / "detectors" / "mine.py").write_text("from brightest_of_all import Brightest\n")
    (tmp_path / "brightest_of_all.py").write_text(OWN)
    model = ["--model", "python:detectors.mine:Brightest", "--device", "cpu", "--no-page"]
    done = cluster.submit(source, output, *model, folder=tmp_path)
    assert done.returncode == 0, done
    assert "sent with the job for --model" in done.stderr
    assert count_images_by_status(output) == [("ok", 3)]
    absent = cluster.submit(source, f"{bucket}/other", *model)
    assert absent.returncode == 2, absent
    assert "no module of this folder: the nodes must have it installed" in absent.stderr
    assert "there is no module 'detectors.mine'" in absent.stdout


@pytest.mark.slow
def test_job_outlives_a_node_and_is_not_submitted_twice(
    cluster: SubmitCluster, bucket: str
) -> None:
    source, output = f"{bucket}/in", f"{bucket}/out"
    fill_bucket(source, 400)
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
    assert count_images_by_status(output) == [("ok", 400)]


@pytest.mark.slow
def test_a_stopped_job_is_resumed_by_the_next(cluster: SubmitCluster, bucket: str) -> None:
    source, output = f"{bucket}/in", f"{bucket}/out"
    fill_bucket(source, 200)
    arguments = [source, output, *OPTIONS, "--env", "DETR_BATCH_LEASE_SECONDS=4"]
    assert cluster.submit(*arguments, "--no-wait").returncode == 0
    fs, path = open_location(output, "OUTPUT")
    until = time.monotonic() + 90
    while not fs.glob(f"{path}/_staging/*/blocks/*"):
        assert time.monotonic() < until, "no block was staged"
        time.sleep(0.2)
    stopped = cluster.submit(source, output, "--stop")
    assert "STOPPED" in stopped.stdout, stopped
    assert cluster.status(source, output)["status"] == "STOPPED"
    done = cluster.submit(*arguments)
    assert done.returncode == 0, done
    assert count_images_by_status(output) == [("ok", 200)]


def is_empty(output: str) -> bool:
    """Whether no object is below `output`; folders do not count, which the server keeps a while."""
    fs, path = open_location(output, "OUTPUT")
    return not [name for name in fs.find(path) if name != path]


@pytest.mark.slow
def test_a_cluster_that_is_too_small_is_refused_within_a_minute(
    cluster: SubmitCluster, bucket: str
) -> None:
    fill_bucket(f"{bucket}/in", 1)
    began = time.monotonic()
    arguments = [f"{bucket}/in", f"{bucket}/out", "--weights", "random", "--device", "cuda"]
    done = cluster.submit(*arguments, "--num-gpus", "2-4")
    assert done.returncode == 2, done
    assert "2 detectors want 1 GPU and 1.5 GiB of memory each, and 0 fit" in done.stdout
    assert "It has 3 nodes with 2 CPUs and 0 GPUs" in done.stdout
    assert time.monotonic() - began < 60
    assert is_empty(f"{bucket}/out")


@pytest.mark.slow
def test_output_that_the_cluster_may_not_write_is_refused(
    cluster: SubmitCluster, bucket: str
) -> None:
    fill_bucket(f"{bucket}/in", 1)
    done = cluster.submit(f"{bucket}/in", "s3://not-theirs/out", *OPTIONS)
    assert done.returncode == 2
    assert "OUTPUT s3://not-theirs/out" in done.stdout


@pytest.mark.slow
def test_a_node_with_another_role_is_refused_before_anything_is_computed(
    cluster: SubmitCluster, bucket: str
) -> None:
    fill_bucket(f"{bucket}/in", 1)
    node = cluster.ray.add_node(num_cpus=1, env_vars={"AWS_ACCESS_KEY_ID": READER})
    try:
        done = cluster.submit(f"{bucket}/in", f"{bucket}/out", *OPTIONS)
    finally:
        cluster.ray.remove_node(node)
    assert done.returncode == 2, done
    assert f"cannot write OUTPUT: {bucket}/out is forbidden" in done.stdout
    assert is_empty(f"{bucket}/out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./photos", "s3://b/out"], "absolute path"),
        (["s3://b/in", "https://b.com/out?X-Amz-Signature=abc"], "carries a secret"),
        (["s3://b/in", "s3://b/out", "--env", "AWS_SECRET_ACCESS_KEY=a"], "would show it"),
        (["s3://b/in", "s3://b/out", "--env", "AZURE_STORAGE_KEY=a"], "would show it"),
        (["s3://b/in", "s3://b/out", "--env", "AWS_ENDPOINT_URL=http://u:p@h"], "would show it"),
        (["s3://b/in", "s3://b/out", "--env", "PGPASS=a"], "PGPASS is named as a secret"),
        (["s3://b/in", "s3://b/out", "--env", "A=redis://:p@h/0"], "A holds a password or a token"),
        (["s3://b/in", "s3://b/out", "--num-gpus", "4-2"], "--num-gpus 4-2"),
        (["s3://b/in", "s3://b/out", "--detect-on", "moon"], "KEY=VALUE"),
        (["s3://b/in", "s3://b/out", "--weights", "pyproject.toml"], "a path of this machine"),
        (["s3://b/in", "s3://b/out", "--canaries", "pyproject.toml"], "a path of this machine"),
        (["s3://b/in", "s3://b/out", "--address", "ray://head:10001"], "http://head:8265"),
        (
            ["s3://b/in", "s3://b/out", "--address", "http://127.0.0.1:1"],
            "no job server of Ray answers",
        ),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        arguments if "--address" in arguments else [*arguments, "--address", "http://127.0.0.1:1"]
    )
    assert main(["submit", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_job_gets_the_same_options() -> None:
    arguments = [
        "s3://b/in",
        "s3://b/out of",
        "--model",
        "shapes-tiny",
        "--num-gpus",
        "2-8",
        "--spot",
    ]
    arguments += [
        "--no-page",
        "--score-threshold",
        "0",
        "--instance-type",
        "g6.xlarge",
        "--relabel",
    ]
    options = label_options(["label", *arguments, "--address", "auto"])
    assert label_options(["label", *words_on_the_cluster(options)]) == options
    plain = label_options(["label", "in", "out", "--address", "auto"])
    assert words_on_the_cluster(LabelOptions("in", "out")) == ["in", "out", "--address", "auto"]
    assert plain.num_gpus == LabelOptions("in", "out").num_gpus


def test_files_of_this_machine_are_sent_to_the_cluster(tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("car,vehicle\n")
    words = words_on_the_cluster(LabelOptions("in", "out", rename=str(file)))
    assert words == ["in", "out", "--address", "auto", "--rename", '{"car": "vehicle"}']


@pytest.mark.parametrize("package", ["torch", "fsspec"])
def test_a_python_without_the_packages_gives_one_line(package: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None; from jobs.cli import main; "
        f"sys.exit(main(['label', {str(tmp_path)!r}, 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert without_time(done.stderr).startswith("detr-batch: this Python (")
    assert package in done.stderr


def test_modules_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def look(model: str) -> list[LocalModule]:
        looked.append(model)
        return []

    monkeypatch.setattr("jobs.submit.submit.modules_of_model", look)
    client = SimpleNamespace(list_jobs=list, submit_job=lambda **_: "job")
    monkeypatch.setattr("jobs.submit.submit.connect", lambda _: client)
    options = LabelOptions("s3://b/in", "s3://b/out", model="python:a:b", address="http://h:8265")
    assert submit(Submission(options, {}, []), wait=False) == 0
    assert looked == ["python:a:b"]


def check_environment(name: str, value: str) -> None:
    options = LabelOptions("s3://b/in", "s3://b/out", address="http://h:8265")
    Submission(options, {name: value}, []).check()


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://u:p@ss/w@h/db",
        "see http://u:p@h, please",
        "https://h/a?x=1&sig=abc",
        "abfs://c@a.net/b?sv=1&sig=abc",
        "AccountName=a;AccountKey=abc==",
        "host=h password=p",
        "Bearer abc123def",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc",
        "AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_a_value_that_holds_a_secret_is_refused_whatever_its_name(value: str) -> None:
    with pytest.raises(InputError, match=r"--env SETTING holds a password.*a role") as refused:
        check_environment("SETTING", value)
    assert value not in str(refused.value)


@pytest.mark.parametrize(
    "value", ["4", "https://h:443/a?x=1", "http://[::1]:8080", "abfs://c@a.net/b", "a@b.c", ""]
)
def test_a_value_without_a_secret_is_passed_on(value: str) -> None:
    check_environment("SETTING", value)


def test_a_container_of_azure_is_no_secret() -> None:
    lake = "abfss://container@account.dfs.core.windows.net"
    options = LabelOptions(f"{lake}/in", f"{lake}/out", address="http://h:8265")
    Submission(options, {}, []).check()
