"""A child process for work that may crash or hang, so that a crash costs one image.

Ray restarts a dead worker for ever and gives it the same block again (2.60: actors and tasks of Ray
Data have no limit of restarts). Decoders and archive readers open files that nobody has checked.
They therefore run in a child process of the worker. If the child dies, the worker knows at which
image it died. README.md says what a child can reach.

The child is a plain Python process that is connected by a pipe. `multiprocessing` would import the
parent's main module in the child, and that module is Ray's worker.
"""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.isolation import frames, serve
from pipeline.isolation.frames import Channel, Late, MalformedAnswer, RowReader
from pipeline.isolation.frames import Row as Row

# Attempts at an image where the child died. The child may have been killed because another process
# used too much memory.
ATTEMPTS = 2
MEMORY_BYTES = 6 << 30  # limit of a child's data; above it the child gets a MemoryError or dies
# The environment variables that a confined child has: what decides how Python starts, where it
# loads libraries from, and how fast they compute. None of them holds a secret.
VARIABLES = """PATH HOME TMPDIR LANG LANGUAGE LC_ALL LC_CTYPE TZ LD_LIBRARY_PATH LD_PRELOAD
    DYLD_LIBRARY_PATH VIRTUAL_ENV PYTHONHOME PYTHONPLATLIBDIR PYTHONHASHSEED PYTHONNOUSERSITE
    PYTHONUSERBASE PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX PYTHONUTF8 PYTHONMALLOC
    PYTHONWARNINGS PYTHONOPTIMIZE PYTHONFAULTHANDLER CUDA_VISIBLE_DEVICES""".split()
PREFIXES = ("OMP_", "MKL_", "OPENBLAS_", "GOMP_", "KMP_", "MALLOC_", "ATEN_", "ONEDNN_", "DNNL_")


class ChildFailed(Exception):
    """The child did not finish an item; the message says how it failed."""


class ChildDied(ChildFailed):
    """The process of the child ended."""


class ChildStuck(ChildFailed):
    """An item took longer than the time limit, and the child was killed."""


class ChildRaised(ChildFailed):
    """The function raised an error that is none of `Answers.errors`, and the child was killed."""


class ChildMisbehaved(ChildFailed):
    """The child answered what it was not asked for, and was killed."""


@dataclass(frozen=True)
class Answers:
    """What a worker accepts from its child. Anything else ends the child (ChildMisbehaved).

    Rows have columns of `schema`; absent ones are null. `errors` are the errors that `stream`
    raises as they are; they are made from a message.
    """

    schema: pa.Schema
    most_bytes: int  # of all binary values of a row together
    errors: tuple[type[Exception], ...] = ()
    is_plausible: Callable[[Row], bool] = lambda row: True


class Child:
    """A child process that runs generators of rows, one at a time.

    `start` or the first call of `stream` starts the process. It first runs `preload` (a module, or
    "module:function"), and it may hold `memory` bytes of data.

    A child is confined (pipeline/isolation/README.md): it has no secrets in its environment, and
    where the kernel allows it, it opens no file and no connection. `opens_stores` is for the child
    that reads INPUT. It needs the credentials, the network and the files of its worker, and keeps
    them.
    """

    def __init__(
        self,
        answers: Answers,
        preload: str = "pipeline",
        memory: int = MEMORY_BYTES,
        opens_stores: bool = False,
    ) -> None:
        self.answers, self.preload, self.memory = answers, preload, memory
        self.opens_stores = opens_stores
        # Why the system calls of the last process are not limited; "" if they are, and None before
        # the first process was ready.
        self.unlimited_because: str | None = None
        self._is_ready = False
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._rows = RowReader(answers.schema)
        self._errors = {error.__name__: error for error in answers.errors}
        self._environment: dict[str, str] = {}

    def start(self) -> Channel:
        """Start the process without waiting for it, and return the pipe to it.

        A process that already runs with the current environment variables is kept.
        """
        environment = self._make_environment()
        running = self._process is not None and self._process.poll() is None
        if running and self._channel is not None and self._environment == environment:
            return self._channel
        self.close()
        self._environment = environment
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours.detach())
        # -P: the child does not import from the current folder, which may be a folder of images.
        command = [sys.executable, "-P", "-m", "pipeline.isolation.child"]
        command += [str(theirs.fileno()), str(self.memory), self.preload]
        command += [serve.UNCONFINED] if self.opens_stores else []
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        return self._channel

    def _make_environment(self) -> dict[str, str]:
        """The child imports from where this process imports from, including Ray's working_dir."""
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        variables = {
            name: value
            for name, value in os.environ.items()
            if self.opens_stores or name in VARIABLES or name.startswith(PREFIXES)
        }
        return {**variables, "PYTHONPATH": path}

    def stream(
        self, target: str, arguments: tuple[Any, ...], seconds: float, rows: int | None = None
    ) -> Iterator[Row]:
        """Yield the rows of the generator `target`, which the child runs with `arguments`.

        `target` is a name ("package.module:function"), so that only the child imports the module.
        Each row may take up to `seconds` seconds. `target` yields `rows` rows, or any number.

        Raises ChildFailed if the process does not deliver a row, or one of `Answers.errors`.
        """
        ended = False
        count = 0
        try:
            deadline = time.monotonic() + seconds
            channel = self._ready(deadline)
            channel.send(frames.REQUEST, pickle.dumps((target, arguments)), deadline)
            while True:
                kind, text, body = channel.receive(self.answers.most_bytes, deadline)
                if kind == frames.ROW and count != rows:
                    row = self._rows.row(text, body)
                    if not self.answers.is_plausible(row):
                        raise MalformedAnswer("its values contradict one another")
                    yield row
                    del row, body  # they may be gigabytes, which the next one needs
                    count += 1
                    deadline = time.monotonic() + seconds
                elif kind == frames.ERROR:
                    error = self._error(text)
                    ended = not isinstance(error, ChildFailed)
                    raise error
                elif kind == frames.END and rows in (None, count):
                    ended = True
                    return
                else:
                    raise MalformedAnswer(f"row {count} of {rows} is {kind!r}")
        except Late as error:
            raise ChildStuck(f"no result within {seconds:g} s") from error
        except MalformedAnswer as error:
            raise ChildMisbehaved(f"its process broke its protocol: {error}") from error
        except (EOFError, ConnectionError) as error:
            raise ChildDied(self._last_words()) from error
        finally:
            if not ended:
                self.close()

    def _ready(self, deadline: float) -> Channel:
        """The channel to a process that waits for a request."""
        channel = self.start()
        if not self._is_ready:
            kind, text, _ = channel.receive(0, deadline)
            reason = frames.text_of(text)
            if kind != frames.READY or not isinstance(reason, str):
                raise MalformedAnswer("it did not say that it is ready")
            self.unlimited_because = reason
            self._is_ready = True
        elif not channel.is_silent():  # it died, or it said something that nobody asked for
            self.close()
            return self._ready(deadline)
        return channel

    def _error(self, text: bytes) -> Exception:
        """The error in a frame."""
        named = frames.text_of(text)
        if not isinstance(named, list) or [type(part) for part in named] != [str, str]:
            raise MalformedAnswer("its error has no name")
        name, message = named
        if name in self._errors:
            return self._errors[name](message)
        return ChildRaised(f"{name}: {message}")

    def close(self) -> None:
        """End the process, if there is one."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._channel = None
        self._is_ready = False

    def _last_words(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.poll()
        if code is None:
            return "its pipe broke"
        if code == -getattr(signal, "SIGSYS", 0):
            return "killed by SIGSYS: it tried what its sandbox forbids"
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
    rows: int | None = None,
) -> Iterator[Row]:
    """Yield the rows that `target` yields in the child (see `Child.stream`).

    `arguments(n)` are the arguments with which `target` skips its first n rows. If the child does
    not deliver row n, the result of `failed(n, error)` replaces it. The rows after it follow only
    if `go_on` is true. `seconds` is the time limit of one row, and `rows` the number of all rows
    (None: any).
    """
    count = attempts = 0
    while count != rows:
        left = None if rows is None else rows - count
        try:
            for row in child.stream(target, arguments(count), seconds, left):
                yield row
                del row
                count, attempts = count + 1, 0
            return
        except ChildFailed as error:
            attempts += 1
            if count == rows:  # it failed after its last row
                return
            if isinstance(error, ChildDied) and attempts < ATTEMPTS:
                continue
            yield failed(count, error)
        if not go_on:
            return
        count, attempts = count + 1, 0


if __name__ == "__main__":
    serve.serve(sys.argv[1:])
