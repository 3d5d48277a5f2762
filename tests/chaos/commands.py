"""Commands as processes. They are forked from a process that has imported everything already.

A command that started from nothing would import torch and Ray for seconds. The forked ones start at
once, and are killed, stopped and waited for as any process.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.cli import main
from pipeline.storage import lock, retries
from tests.chaos.injected import INJECTED
from tests.support.alone import label_without_ray

LOOK_SECONDS = 0.02
# How a command runs: forked, without Ray; so, but with the processes that decode; as users run it.
ALONE, ISOLATED, RAY = "alone", "isolated", "ray"
LOG, CODE = "log", "code"  # files in the folder of a command
PR_SET_PDEATHSIG = 1
MOST_BYTES = 1 << 16  # of a request


@dataclass
class Command:
    """A command that was started."""

    words: list[str]
    pid: int
    folder: Path  # its log, its exit code, and `faults/` (injected/sitecustomize.py)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        file = self.folder / CODE
        return int(file.read_text()) if file.exists() else None

    def wait(self, seconds: float) -> int:
        """Its exit code. AssertionError, after it is killed, if it does not end in time."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"{self} hung for {seconds:.0f} s: {self.said()}")
            time.sleep(LOOK_SECONDS)
        return code

    def signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def said(self) -> str:
        return (self.folder / LOG).read_text(errors="replace")

    def steps(self) -> list[str]:
        """Changes of OUTPUT that it made, two steps a change: before and after."""
        file = self.folder / "faults/steps"
        return file.read_text().splitlines() if file.exists() else []

    def staged(self) -> list[tuple[str, str, int]]:
        """Run, shard and position of all images that it staged."""
        file = self.folder / "faults/staged"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(run, shard, index) for line in lines for run, shard, index in json.loads(line)]

    def at_step(self) -> list[int]:
        """Processes to which the deed was done that waited for its step: the driver comes first."""
        file = self.folder / "faults/done"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    def wake(self) -> None:
        """Let the processes go on that stopped at a step."""
        for pid in set(self.at_step()):
            os.kill(pid, signal.SIGCONT)

    def __str__(self) -> str:
        return " ".join(self.words[:2])


class Forge:
    """A process without threads that forks the commands of one fault."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self.socket.close()
            _serve(theirs)
        theirs.close()

    def start(
        self, words: list[str], environment: dict[str, str], how: str, at: str = ""
    ) -> Command:
        """Start a command with these additional environment variables.

        `at` is a step and the deed that is done there ("12 kill").
        """
        self.count += 1
        folder = self.folder / f"{self.count:02}-{words[0]}"
        faults = folder / "faults"
        faults.mkdir(parents=True)
        if at:
            (faults / "at").write_text(at)
        environment = {**environment, "DETR_BATCH_FAULTS": str(faults)}
        self.socket.send(json.dumps([words, environment, how, str(folder)]).encode())
        return Command(words, int(self.socket.recv(MOST_BYTES)), folder)


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent ends (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def _serve(requests: socket.socket) -> None:
    """Start a command for each request, until the other side is gone."""
    die_with_parent()
    while request := requests.recv(MOST_BYTES):
        words, environment, how, folder = json.loads(request)
        told, tell = os.pipe()
        if os.fork() == 0:
            os.close(told)
            _keep(words, environment, how, Path(folder), tell)
        os.close(tell)
        requests.send(os.read(told, 32))
        os.close(told)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
    os._exit(0)


def _keep(words: list[str], environment: dict[str, str], how: str, folder: Path, tell: int) -> None:
    """Start one command, and write down how it ends."""
    die_with_parent()
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        _become(words, environment, how, folder)
    os.write(tell, str(pid).encode())
    os.close(tell)
    status = os.waitpid(pid, 0)[1]
    temporary = folder / "code.part"
    temporary.write_text(str(os.waitstatus_to_exitcode(status)))
    temporary.rename(folder / CODE)
    os._exit(0)


def _become(words: list[str], environment: dict[str, str], how: str, folder: Path) -> None:
    """Turn this process into a command."""
    die_with_parent()
    nothing = os.open(os.devnull, os.O_RDWR)
    target = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(nothing, 0)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.setsid()
    os.environ.update(environment)
    (folder / "faults/driver").write_text(str(os.getpid()))
    if how == RAY:
        os.environ["PYTHONPATH"] = str(INJECTED)
        os.execv(sys.executable, [sys.executable, "-m", "jobs.cli", *words])
    code = 1
    try:
        sys.path.append(str(INJECTED))  # processes that this one starts inherit it
        _take_over_environment()
        label_without_ray(children=how == ISOLATED)
        code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _take_over_environment() -> None:
    """What modules read from the environment when they were imported, long ago."""
    retries.PATIENCE = float(os.environ["DETR_BATCH_STORE_PATIENCE"])
    lock.OutputLock.__init__.__defaults__ = (float(os.environ["DETR_BATCH_LEASE_SECONDS"]),)
