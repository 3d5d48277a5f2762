"""A Ray that a command starts for itself is out of reach: of other machines, and of other users."""

import ipaddress
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

# Starts a Ray as `label` does, with a worker and an actor, and prints what its processes show.
SHOW = """
import json, os, time
import psutil, ray
from jobs.cluster.start import start_ray
start_ray(None)

@ray.remote(num_cpus=0.1)
def work():
    return os.environ.get("RAY_AUTH_TOKEN")

@ray.remote(num_cpus=0.1)
class Actor:
    def work(self):
        return os.environ.get("RAY_AUTH_TOKEN")

actor = Actor.remote()
tokens = set(ray.get([work.remote(), actor.work.remote()]))
time.sleep(3)  # agents open their ports some time after Ray answers
processes = psutil.Process().children(recursive=True)
print(json.dumps({
    "sockets": [
        connection.laddr.ip
        for process in [psutil.Process(), *processes]
        for connection in process.net_connections("inet")
        if connection.status in ("LISTEN", "NONE")
    ],
    "ports": [
        connection.laddr.port
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    ],
    "names": sorted({process.name() for process in processes}),
    "tokens": sorted(map(str, tokens)),
    "own": os.environ.get("RAY_AUTH_TOKEN"),
    "commands": [" ".join(process.cmdline()) for process in processes],
    "address": ray.get_runtime_context().gcs_address,
    "logs": ray._private.worker._global_node.get_logs_dir_path(),
}), flush=True)
input()
"""
JOIN = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False)
except Exception as error:
    print(type(error).__name__, str(error).splitlines()[0])
else:
    print("joined", len(ray.nodes()))
"""


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user who has said nothing about Ray."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**found, "HOME": str(home), **variables}


def join(home: Path, address: str, **variables: str) -> str:
    """What Ray answers to somebody on this machine who tries to connect."""
    variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # or Ray tries the machine's own address
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(home, **variables),
        check=False,
    )
    return done.stdout.strip() or done.stderr


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


@pytest.mark.slow
def test_a_local_ray_is_for_its_own_command_alone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    ) as command:
        assert command.stdout
        try:
            line = command.stdout.readline()
            assert line, "Ray did not start"
            shown: dict[str, Any] = json.loads(line)
            other, (token,) = tmp_path / "other", shown["tokens"]
            address = shown["address"]
            attempts = [
                {"RAY_AUTH_MODE": "disabled"},
                {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
                {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            ]
            with ThreadPoolExecutor() as pool:
                answers = list(pool.map(lambda one: join(other, address, **one), attempts))
        finally:
            command.communicate("\n", timeout=60)
    assert command.returncode == 0
    assert {"gcs_server", "raylet"} <= set(shown["names"])
    for helper in ("dashboard/dashboard.py", "monitor.py", "log_monitor.py"):
        assert not [one for one in shown["commands"] if helper in one], "it slows the start"
    assert len(shown["sockets"]) >= len(shown["names"])
    fixed = DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    assert fixed not in shown["ports"], "the next Ray of this machine would wait 5 s for it"
    assert [one for one in shown["sockets"] if not is_loopback(one)] == []
    assert len(token) >= 32, "all processes have one token, and it cannot be guessed"
    assert shown["own"] is None, "what the command starts itself needs no token"
    assert not [one for one in shown["commands"] if token in one], "ps would show it"
    logs = [file for file in Path(shown["logs"]).rglob("*") if file.is_file()]
    assert logs
    assert not [file for file in logs if token in file.read_text(errors="replace")]
    assert not list(tmp_path.rglob("auth_token")), "a file would be there for others to read"
    assert answers[2] == "joined 1"
    for answer in answers[:2]:
        assert answer.startswith(("ConnectionError", "AuthenticationError")), answer


@pytest.mark.slow
def test_a_token_of_the_environment_is_respected(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("f" * 64)
    start = "from jobs.cluster.start import start_ray; start_ray(None); import os, ray\n"
    start += "print(ray.get(ray.remote(lambda: os.environ.get('RAY_AUTH_TOKEN')).remote()))\n"
    start += "print(os.environ['RAY_AUTH_TOKEN_PATH'], os.environ['RAY_AUTH_MODE'])"
    done = subprocess.run(
        [sys.executable, "-c", start],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(tmp_path, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token")),
        check=False,
    )
    assert done.stdout.splitlines() == ["None", f"{tmp_path / 'token'} token"], done.stderr


@pytest.mark.slow
def test_a_token_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    words = ["label", str(tmp_path), str(tmp_path / "out"), "--model", "shapes-tiny"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(tmp_path, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token")),
        check=False,
    )
    assert done.returncode == 2
    *before, line = done.stderr.splitlines()
    assert before[-1].endswith("starting Ray and the model on this machine")
    assert "Traceback" not in done.stderr
    assert "detr-batch: Ray does not start on this machine: RAY_AUTH_TOKEN_PATH" in line
    assert line.endswith(str(tmp_path / "token"))
