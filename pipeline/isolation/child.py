"""Work that may crash or stand still, in a process of its own, so that it costs one image.

Ray starts a dead worker anew for ever, and hands it the same block again (2.60: actors and tasks of
Ray Data have no bound). So decoders and archive readers, which look into files that nobody
checked, run in a child of the worker: where it dies, the worker knows at which image.

The child is a plain Python process behind a pipe. `multiprocessing` would import the parent's
main module there, which is Ray's worker.
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

ATTEMPTS = 2  # at an image where the child died: it may have been killed for another's memory
MEMORY_BYTES = 6 << 30  # of a child's own data; more is a MemoryError there, or its end
WATCH_SECONDS = 1.0

Row = dict[str, Any]


class ChildFailed(Exception):
    """The child did not finish an item; the text says in what way."""


class ChildDied(ChildFailed):
    """Its process ended."""


class ChildStuck(ChildFailed):
    """An item took too long, and the child was ended."""


class Child:
    """A process that runs generators, one at a time; started by `start`, or when it is asked.

    It imports the module `preload` at once, and may hold `memory` bytes of data.
    """

    def __init__(self, preload: str = "pipeline", memory: int = MEMORY_BYTES) -> None:
        self.preload, self.memory = preload, memory
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._environment: dict[str, str] = {}

    def start(self) -> Connection:
        """Start the process, unless it runs in this environment, without waiting for it."""
        running = self._process is not None and self._process.poll() is None
        if running and self._pipe is not None and self._environment == os.environ:
            return self._pipe
        self.close()
        self._environment = dict(os.environ)
        self._pipe, theirs = Pipe()
        # -P: the folder of pictures where this may run is no place to import from. Where this
        # process imports from, Ray's working_dir among it, is.
        command = [sys.executable, "-P", "-m", "pipeline.isolation.child"]
        command += [str(theirs.fileno()), str(self.memory), self.preload]
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": path}
        )
        theirs.close()
        return self._pipe

    def stream(self, target: str, arguments: tuple[Any, ...], seconds: float) -> Iterator[Any]:
        """Items of the generator `target` ("package.module:function"), each within `seconds`.

        It is named, so that the child alone imports what it needs.

        ChildFailed where the process does not give one; else whatever `target` raises.
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
    """Rows of `target`, as in `Child.stream`, which leaves out n of them given `arguments(n)`.

    Where the child does not give row n, `failed(n, why)` stands for it, and with `go_on` the rows
    behind it follow.
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
    """Answer requests until the parent is gone."""
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
    """A child that stands still would outlive its parent."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _bound_memory(most: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
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
