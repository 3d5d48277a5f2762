"""No Ray of these manifests runs without authentication: two nodes, by the very commands."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.infra.manifests import ROOT
from tests.support.s3_server import free_ports

AWS = ROOT / "infra" / "aws"
BIN = Path(sys.executable).parent
START_SECONDS = 90.0
CONNECT = """
import os, sys, ray
from jobs.cluster.start import start_ray
from pipeline.storage.errors import InputError
try:
    start_ray(sys.argv[1])
except InputError as error:
    sys.exit(f"refused: {error}")
print(sum(node["Alive"] for node in ray.nodes()), ray.get(ray.remote(lambda: 7).remote()))
"""


def cluster() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((AWS / "cluster.yaml").read_text(encoding="utf-8"))
    return found


def container_environment() -> dict[str, str]:
    """The variables of every process in the containers of the cluster."""
    options = shlex.split(" ".join(cluster()["docker"]["run_options"]))
    given = [value for flag, value in pairwise(options) if flag == "--env"]
    return dict(one.split("=", 1) for one in given)


def starts() -> dict[str, str]:
    """The two commands that start Ray, of the head and of workers."""
    found = {
        kind: [line for line in cluster()[f"{kind}_start_ray_commands"] if "ray start" in line]
        for kind in ("head", "worker")
    }
    return {kind: lines[0] for kind, lines in found.items() if len(lines) == 1}


def make_token(home: Path) -> Path:
    """Let nightly.sh make the token, with a stand-in for Ray's launcher. Returns its file."""
    launcher = home / "bin" / "ray"
    launcher.parent.mkdir(parents=True, exist_ok=True)
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    done = subprocess.run(
        [str(AWS / "nightly.sh"), "s3://lake/photos", "s3://lake/labels"],
        env={"PATH": f"{launcher.parent}:{os.environ['PATH']}", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    ((_, folder),) = cluster()["file_mounts"].items()
    (file,) = Path(folder.replace("~", str(home))).iterdir()
    assert file.read_text().strip() not in done.stdout + done.stderr
    return file


def test_every_ray_of_the_cluster_wants_the_token() -> None:
    given = container_environment()
    assert given["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in given, "docker's command line would show it"
    ((target, _),) = cluster()["file_mounts"].items()
    assert Path(given["RAY_AUTH_TOKEN_PATH"]).parent == Path(target)
    assert set(starts()) == {"head", "worker"}
    for command in starts().values():
        assert "RAY_AUTH" not in command, "what is set there would not hold for jobs"


def test_no_file_here_starts_a_ray_without_authentication() -> None:
    """Whoever adds one has to add it to the tests of this file."""
    files = [file for file in (ROOT / "infra").rglob("*") if file.suffix in (".yaml", ".sh", ".py")]
    assert files
    starting = {file.name for file in files if re.search(r"\bray start\b", file.read_text())}
    assert starting == {"cluster.yaml"}
    for file in files:
        assert not re.search(r"RAY_AUTH_MODE\W+disabled|mode: disabled", file.read_text()), file


def test_the_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    file = make_token(tmp_path)
    token = file.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", token)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert file.name == Path(container_environment()["RAY_AUTH_TOKEN_PATH"]).name
    assert make_token(tmp_path).read_text() == token, "nodes that run know this one"
    file.write_text("")
    assert make_token(tmp_path).read_text() not in (token, ""), "a night was killed at its start"


@dataclass(frozen=True)
class Nodes:
    """A head and a worker on loopback, started as cluster.yaml says."""

    address: str
    server: str
    token: Path
    folder: Path  # of Ray's sessions and logs
    processes: list[psutil.Process]


def rewritten(command: str, ports: Iterator[int], folder: str, gcs: int) -> list[str]:
    """A command of cluster.yaml with ports that are free here, in the foreground, without EC2."""
    words = [word for word in shlex.split(command) if "--autoscaling-config" not in word]
    command = " ".join(words).replace("$RAY_HEAD_IP:6379", f"127.0.0.1:{gcs}")
    command = command.replace("--port=6379", f"--port={gcs}")
    for port in ("object-manager-port=8076", "metrics-export-port=8080"):
        assert port in command
        command = command.replace(port, f"{port.partition('=')[0]}={next(ports)}")
    own = [f"--dashboard-agent-listen-port={next(ports)}", "--num-cpus=1", "--block"]
    if "--head" in words:
        own += [f"--ray-client-server-port={next(ports)}", f"--temp-dir={folder}"]
    return [*shlex.split(command), *own]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    gcs, dashboard, *others = free_ports(9)
    ports = iter(others)
    home = tmp_path_factory.mktemp("home")
    folder = tempfile.mkdtemp(prefix="ray-")  # short, for paths of sockets
    token = make_token(home)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    environment |= container_environment() | {"RAY_AUTH_TOKEN_PATH": str(token)}
    environment |= {"PATH": f"{BIN}:{environment['PATH']}"}
    started = []
    try:
        for kind, command in starts().items():
            words = rewritten(command, ports, folder, gcs)
            if kind == "head":
                words.append(f"--dashboard-port={dashboard}")
            with (home / f"{kind}.log").open("w") as log:
                started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
            wait_for_log(home / f"{kind}.log", started[-1])
        processes = [psutil.Process(one.pid) for one in started]
        processes += [child for one in processes for child in one.children(recursive=True)]
        server = f"http://127.0.0.1:{dashboard}"
        yield Nodes(f"127.0.0.1:{gcs}", server, token, Path(folder), processes)
    finally:
        for one in reversed(started):
            children = psutil.Process(one.pid).children(recursive=True)
            one.terminate()
            one.wait(60)
            for left in psutil.wait_procs(children, timeout=10)[1]:
                left.kill()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_log(log: Path, node: subprocess.Popen[bytes]) -> None:
    """Wait until a node says that it has started."""
    deadline = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in log.read_text():
        assert node.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def run(words: list[str], home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of somebody on the network who has these variables of Ray, and no token file."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, *words],
        env={**environment, "HOME": str(home), **variables},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


WITHOUT: dict[str, dict[str, str]] = {
    "none": {},
    "disabled": {"RAY_AUTH_MODE": "disabled"},
    "missing": {"RAY_AUTH_MODE": "token"},
    "unreadable": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere/auth_token"},
    "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
}


@pytest.mark.slow
def test_two_nodes_know_each_other_and_whoever_has_the_token(nodes: Nodes, tmp_path: Path) -> None:
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(nodes.token)}
    joined = run(["-c", CONNECT, nodes.address], tmp_path, **given)
    assert joined.stdout == "2 7\n", joined.stderr
    token = nodes.token.read_text().strip()
    commands = [" ".join(process.cmdline()) for process in nodes.processes]
    assert any("raylet" in command for command in commands)
    assert not [command for command in commands if token in command], "ps would show it"
    logs = [file for file in nodes.folder.rglob("*.*") if file.is_file()]
    logs += list(nodes.token.parents[2].glob("*.log"))
    assert logs
    assert not [file for file in logs if token in file.read_text(errors="replace")]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT)
def test_nobody_else_joins_the_cluster(name: str, nodes: Nodes, tmp_path: Path) -> None:
    refused = run(["-c", CONNECT, nodes.address], tmp_path, **WITHOUT[name])
    assert refused.returncode == 1
    assert refused.stdout == ""
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(f"refused: --address {nodes.address}"), refused.stderr
    for variable in ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        assert variable in last


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT)
def test_nobody_else_submits_a_job(name: str, nodes: Nodes, tmp_path: Path) -> None:
    words = ["-m", "jobs.cli", "submit", "s3://b/in", "s3://b/out", "--address", nodes.server]
    refused = run([*words, "--status"], tmp_path, **WITHOUT[name])
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    for word in (nodes.server, "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        assert word in line


@pytest.mark.slow
def test_whoever_has_the_token_asks_the_job_server(nodes: Nodes, tmp_path: Path) -> None:
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": nodes.token.read_text().strip()}
    words = ["-m", "jobs.cli", "submit", "s3://b/in", "s3://b/out", "--address", nodes.server]
    answered = run([*words, "--status"], tmp_path, **given)
    assert answered.returncode == 2
    assert "knows no job that labels into s3://b/out" in answered.stderr
