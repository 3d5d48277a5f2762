"""A child process for work that may crash or hang, so that a crash costs one image.

Ray restarts a dead worker for ever and gives it the same block again (2.60: actors and tasks of Ray
Data have no limit of restarts). Decoders and archive readers open files that nobody has checked.
They therefore run in a child process of the worker. If the child dies, the worker knows at which
image it died.

The child is a plain Python process that is connected by a pipe. `multiprocessing` would import the
parent's main module in the child, and that module is Ray's worker.
"""

import contextlib
import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

# Attempts at an image where the child died. The child may have been killed because another process
# used too much memory.
ATTEMPTS = 2
MEMORY_BYTES = 6 << 30  # limit of a child's data; above it the child gets a MemoryError or dies
WATCH_SECONDS = 1.0

Row = dict[str, Any]


class ChildFailed(Exception):
    """The child did not finish an item; the message says how it failed."""


class ChildDied(ChildFailed):
    """The process of the child ended."""


class ChildStuck(ChildFailed):
    """An item took longer than the time limit, and the child was killed."""


class Child:
    """A child process that runs generators, one at a time.

    `start` or the first call of `stream` starts the process. It imports the module `preload` at its
    start, and it may hold `memory` bytes of data.
    """

    def __init__(self, preload: str = "pipeline", memory: int = MEMORY_BYTES) -> None:
        self.preload, self.memory = preload, memory
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._environment: dict[str, str] = {}

    def start(self) -> Connection:
        """Start the process without waiting for it, and return the pipe to it.

        A process that already runs with the current environment variables is kept.
        """
        running = self._process is not None and self._process.poll() is None
        if running and self._pipe is not None and self._environment == os.environ:
            return self._pipe
        self.close()
        self._environment = dict(os.environ)
        self._pipe, theirs = Pipe()
        # -P: the child does not import from the current folder, which may be a folder of images.
        # It imports from where this process imports from, including Ray's working_dir.
        command = [sys.executable, "-P", "-m", "pipeline.isolation.child"]
        command += [str(theirs.fileno()), str(self.memory), self.preload]
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": path}
        )
        theirs.close()
        return self._pipe

    def stream(self, target: str, arguments: tuple[Any, ...], seconds: float) -> Iterator[Any]:
        """Yield the items of the generator `target`, which the child runs with `arguments`.

        `target` is a name ("package.module:function"), so that only the child imports the module.
        Each item may take up to `seconds` seconds.

        Raises ChildFailed if the process does not deliver an item, and else any error that `target`
        raises.
        """
        ended = False
        try:
            pipe = self.start()
            pipe.send((target, arguments))
            while True:
                if not pipe.poll(seconds):
                    raise ChildStuck(f"no result within {seconds:g} s")
                kind, value = pipe.recv()
                if kind == "item":
                    yield value
                    continue
                ended = True
                if kind == "error":
                    raise value
                return
        except (EOFError, ConnectionError) as error:
            raise ChildDied(self._last_words()) from error
        finally:
            if not ended:
                self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._pipe = None

    def _last_words(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.poll()
        if code is None:
            return "its pipe broke"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def __del__(self) -> None:
        self.close()


def read_rows_in_child(
    child: Child,
    target: str,
    arguments: Callable[[int], tuple[Any, ...]],
    seconds: float,
    failed: Callable[[int, ChildFailed], Row],
    go_on: bool,
) -> Iterator[Row]:
    """Yield the rows that `target` yields in the child (see `Child.stream`).

    `arguments(n)` are the arguments with which `target` skips its first n rows. If the child does
    not deliver row n, the result of `failed(n, error)` replaces it. The rows after it follow only
    if `go_on` is true. `seconds` is the time limit of one row.
    """
    count = attempts = 0
    while True:
        try:
            for row in child.stream(target, arguments(count), seconds):
                yield row
                count, attempts = count + 1, 0
            return
        except ChildFailed as error:
            attempts += 1
            if isinstance(error, ChildDied) and attempts < ATTEMPTS:
                continue
            yield failed(count, error)
        if not go_on:
            return
        count, attempts = count + 1, 0


def _serve(pipe: Connection) -> None:
    """Answer requests until the parent process ends."""
    while True:
        try:
            target, arguments = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            for item in pkgutil.resolve_name(target)(*arguments):
                pipe.send(("item", item))
        except ConnectionError:
            return
        except Exception as error:
            pipe.send(("error", error))
        else:
            pipe.send(("end", None))


def _end_with(parent: int) -> None:
    """End this process when its parent ends. A child that hangs would outlive its parent."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _bound_memory(most: int) -> None:
    try:
        import resource
    except ImportError:  # Windows does not have this module
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _bound_memory(int(sys.argv[2]))
    importlib.import_module(sys.argv[3])
    _serve(Connection(int(sys.argv[1])))
