"""The head of a Ray cluster on loopback, as a process of the test's own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.s3_server import free_ports

LOOPBACK = "127.0.0.1"
START_SECONDS, END_SECONDS = 90.0, 60.0


@dataclass(frozen=True)
class RayHead:
    """A head that runs, and the file of what it says."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Fail, with what it said, if it has ended."""
        assert self.process.poll() is None, self.log.read_text()


@contextmanager
def ray_head(
    folder: Path, words: Sequence[str], variables: Mapping[str, str], ports: Sequence[int] = ()
) -> Iterator[RayHead]:
    """Run a head for the `with` block, and end it with all of its nodes.

    `words` and `variables` are further ones of `ray start`. The head is ready when its own port and
    these `ports` answer. Its log is in `folder`. It wants no token.
    """
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += ["--port", str(port), *words]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", **variables}
    log = folder / "head.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    head = RayHead(f"{LOOPBACK}:{port}", process, log)
    try:
        until = time.monotonic() + START_SECONDS
        while any(socket.socket().connect_ex((LOOPBACK, one)) for one in (port, *ports)):
            head.check()
            assert time.monotonic() < until, f"Ray did not answer: {log.read_text()}"
            time.sleep(0.5)
        yield head
    finally:
        nodes = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(END_SECONDS)
        for left in psutil.wait_procs(nodes, timeout=10)[1]:
            left.kill()
