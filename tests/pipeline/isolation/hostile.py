"""What a hostile image file may do that took over the child that decodes it.

Functions of this module run in children. Each deed either fails with an error, ends the child, or
comes back as a row.
"""

import ctypes
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.isolation import frames

Row = dict[str, Any]
LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
NOBODY = 65534
FORKS = 3


def become_nobody() -> None:
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def repeat(text: str) -> str:
    return text


def read_secret(name: str) -> str:
    return os.environ[name]


def read_file(path: str) -> str:
    return Path(path).read_text(errors="replace")


def write_file(path: str) -> str:
    Path(path).write_text("taken")
    return "taken"


def delete_file(path: str) -> str:
    os.unlink(path)
    return "deleted"


def connect_tcp(port: int) -> str:
    with socket.socket() as connection:
        connection.connect(("127.0.0.1", port))
        return connection.recv(5).decode()


def send_udp(port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return str(sender.sendto(b"secret", ("127.0.0.1", port)))


def connect_unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        return connection.recv(5).decode()


def become_program(path: str) -> str:
    os.execv(path, [path])


def fork(_: str) -> str:
    """A bomb of FORKS processes."""
    for _number in range(FORKS):
        process = os.fork()
        if process == 0:
            os._exit(0)
        os.waitpid(process, 0)
    return "forked"


def read_file_in_thread(path: str) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(read_file, path).result()


def start_thread(_: str) -> str:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    return "ran"


def trace(process: int) -> str:
    """Take hold of a process, and let it go: its parent waits for it in vain otherwise."""
    if LIBC.ptrace(PTRACE_SEIZE, process, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    LIBC.ptrace(PTRACE_INTERRUPT, process, None, None)
    os.waitpid(process, 0)
    LIBC.ptrace(PTRACE_DETACH, process, None, None)
    return "traced"


def kill(process: int) -> str:
    os.kill(process, signal.SIGTERM)
    return "killed"


def make_code(_: str) -> str:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    return "executable"


def duplicate_pipe(_: str) -> str:
    return str(os.dup(int(sys.argv[1])))


def do(deed: str, argument: Any) -> Iterator[Row]:
    """The row of a deed of this module that succeeds."""
    yield {"did": globals()[deed](argument)}


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], str], tuple[str]]:
        return write_file, (self.path,)


def pickle_bomb(path: str) -> bytes:
    return pickle.dumps(("item", Bomb(path)))


def say(content: bytes, then_wait: float = 0.0) -> Iterator[Row]:
    """Write bytes into the pipe."""
    os.write(int(sys.argv[1]), content)
    time.sleep(then_wait)
    yield from ()


def say_again(content: bytes) -> Iterator[Row]:
    """Write the same bytes for ever."""
    while True:
        yield from say(content)


def say_slowly(content: bytes) -> Iterator[Row]:
    """Write a byte each tenth of a second."""
    for byte in content:
        yield from say(bytes([byte]), 0.1)


def speak_after_end() -> Iterator[Row]:
    """Answer well, and answer the next request before it is made."""
    pipe = int(sys.argv[1])
    frames.send_row(pipe, {"did": "well"})
    frames.send_answer(pipe, frames.END)
    frames.send_row(pipe, {"did": "a lie"})
    time.sleep(60)
    yield {}
