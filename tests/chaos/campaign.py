"""Runs faults, each in a process of its own that has a deadline and a bound of its memory."""

import ctypes
import json
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import psutil

from tests.chaos.commands import Forge, die_with_parent
from tests.chaos.harness import Fault, Lab, NotPossible, point_to_store
from tests.chaos.kinds import KINDS
from tests.chaos.world import World
from tests.support.s3_server import s3_server

ALONE_SECONDS, RAY_SECONDS = 300.0, 900.0  # for one fault
ALONE_BYTES, RAY_BYTES = 3 << 30, 8 << 30  # of all processes of one fault
LOOK_SECONDS, MEASURE_SECONDS = 0.1, 2.0  # between looks at a fault, and at its memory
PR_SET_CHILD_SUBREAPER = 36
FOLDER = "CHAOS_FOLDER"  # by this variable processes are found that a fault leaves behind


@dataclass
class Task:
    """A fault that is being injected."""

    fault: Fault
    pid: int
    folder: Path
    began: float
    most_bytes: int = 0
    measured: float = 0.0  # when its memory was

    def bounds(self) -> tuple[float, int]:
        return (RAY_SECONDS, RAY_BYTES) if self.fault.ray else (ALONE_SECONDS, ALONE_BYTES)


class Campaign:
    """Injects faults below a folder. The world is made first."""

    def __init__(self, folder: Path, jobs: int):
        self.folder, self.jobs = folder, jobs
        self.world = World(folder / "world")
        self.running: list[Task] = []
        # What a killed command leaves running becomes a child of this process, and is found so.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    @contextmanager
    def services(self) -> Iterator["Campaign"]:
        """An S3 server for all faults, in a process of its own: this one must have no threads."""
        told, tell = os.pipe()
        self.server = os.fork()
        if self.server == 0:
            _serve_s3(tell)
        os.close(tell)
        with os.fdopen(told) as pipe:
            self.credentials = pipe.readline()
        assert self.credentials, "no S3 server"
        try:
            yield self
        finally:
            os.kill(self.server, signal.SIGTERM)
            os.waitpid(self.server, 0)

    def prepare(self) -> None:
        """Make the world, in a process of its own."""
        folder = self._new_folder("world")
        pid = os.fork()
        if pid == 0:
            point_to_store(self.credentials)
            forge = Forge(folder)
            _in_child(folder, lambda: self.world.prepare(forge))
        os.waitpid(pid, 0)
        result = _result(folder)
        assert not result.get("problem"), result["problem"]
        rmtree(folder)

    def inject(
        self, faults: Iterable[Fault], until: float
    ) -> Iterator[tuple[Fault, dict[str, Any]]]:
        """Inject faults, and yield what came of each; no new one after the Unix time `until`."""
        waiting, running = deque(faults), self.running
        while running or (waiting and time.time() < until):
            while waiting and self._fits(waiting[0], running) and time.time() < until:
                running.append(self._begin(waiting.popleft()))
            time.sleep(LOOK_SECONDS)
            for task in list(running):
                if (result := self._look_at(task)) is not None:
                    running.remove(task)
                    yield task.fault, result

    def _fits(self, fault: Fault, running: list[Task]) -> bool:
        """Faults with Ray come one by one: they use all cores."""
        if fault.ray or any(task.fault.ray for task in running):
            return not running
        return len(running) < self.jobs

    def _new_folder(self, name: str) -> Path:
        folder = self.folder / "work" / f"{name}-{os.getpid()}-{time.time_ns() // 1000 % 10**9}"
        folder.mkdir(parents=True)
        return folder

    def _begin(self, fault: Fault) -> Task:
        folder = self._new_folder("fault")
        pid = os.fork()
        if pid == 0:
            os.setsid()
            die_with_parent()
            _in_child(folder, lambda: self._be_fault(fault, folder))
        return Task(fault, pid, folder, time.monotonic())

    def _be_fault(self, fault: Fault, folder: Path) -> dict[str, Any]:
        point_to_store(self.credentials)
        os.environ[FOLDER] = str(folder)
        lab = Lab(fault, self.world, folder, Forge(folder))
        try:
            KINDS[fault.kind](lab)
        finally:
            lab.clean_up()
        return lab.result()

    def _look_at(self, task: Task) -> dict[str, Any] | None:
        """What came of a fault; None while it goes on."""
        seconds = time.monotonic() - task.began
        ended = os.waitpid(task.pid, os.WNOHANG)[0] == task.pid
        problem = None
        if not ended:
            most_seconds, most_bytes = task.bounds()
            if time.monotonic() - task.measured > MEASURE_SECONDS:
                task.most_bytes = max(task.most_bytes, _bytes_of(task.pid))
                task.measured = time.monotonic()
            if seconds > most_seconds:
                problem = f"it took more than {most_seconds:.0f} s"
            elif task.most_bytes > most_bytes:
                problem = f"it took more than {most_bytes >> 20} MiB"
            else:
                return None
        self._end(task, ended)
        result = {"problem": problem} if problem else _result(task.folder)
        if "problem" in result:
            result["logs"] = str(task.folder)
        else:
            rmtree(task.folder, ignore_errors=True)
        return {**result, "seconds": round(seconds, 1), "mebibytes": task.most_bytes >> 20}

    def _end(self, task: Task, ended: bool) -> None:
        """Kill what is left of a fault, such as the servers of a Ray whose driver was killed."""
        if not ended:
            with suppress(psutil.NoSuchProcess):
                _kill(psutil.Process(task.pid).children(recursive=True))
            os.kill(task.pid, signal.SIGKILL)
            os.waitpid(task.pid, 0)
        own = {self.server, *(one.pid for one in self.running)}
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                if process.environ().get(FOLDER) == str(task.folder):
                    _kill([process])
        with suppress(ChildProcessError):
            for process in psutil.Process().children():
                if process.pid not in own and process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(process.pid, os.WNOHANG)


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _bytes_of(pid: int) -> int:
    """Memory of a process and all below it; what several share counts once in all."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                total += one.memory_full_info().pss
    return total


def _in_child(folder: Path, work: Callable[[], dict[str, Any] | None]) -> None:
    """Do the work in this forked process, write down its result, and end."""
    try:
        result = work() or {}
    except NotPossible as reason:
        result = {"not_possible": str(reason)}
    except BaseException as error:
        plain = isinstance(error, AssertionError)
        result = {"problem": str(error) if plain else traceback.format_exc()}
    (folder / "result.json").write_text(json.dumps(result))
    os._exit(0)


def _result(folder: Path) -> dict[str, Any]:
    file = folder / "result.json"
    if not file.exists():
        return {"problem": "its process ended without a result"}
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _serve_s3(tell: int) -> None:
    """Run the S3 server until this process is told to end."""
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with suppress(KeyboardInterrupt), s3_server() as credentials:
        os.write(tell, json.dumps(credentials).encode() + b"\n")
        os.close(tell)
        signal.pause()
    os._exit(0)
