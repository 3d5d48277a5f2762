"""Web servers on loopback, which tests make of a handler of requests."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that writes nothing to the terminal."""

    def log_message(self, *_: object) -> None:
        pass


class FileHandler(QuietHandler, SimpleHTTPRequestHandler):
    """Sends the files of a folder."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Write nothing to the terminal when a client breaks off."""


@contextmanager
def served(
    handler: Callable[..., BaseHTTPRequestHandler], context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve by a handler; the address, such as `http://127.0.0.1:8000`. TLS needs a `context`."""
    server = _Server(("127.0.0.1", 0), handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def served_files(
    folder: Path, handler: type[FileHandler] = FileHandler
) -> AbstractContextManager[str]:
    """Serve the files of a folder, as `served`."""
    return served(partial(handler, directory=str(folder)))


@dataclass
class VersionedFile:
    """A file that a server sends whole at every address. Tests change it while it is served.

    Without `length` the body ends with the connection. `before_body` is called at each GET.
    """

    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: bool = True
    status: int = 200
    sent: int | None = None  # bytes after which the connection breaks off
    before_body: Callable[[], None] = lambda: None

    def served(self) -> AbstractContextManager[str]:
        return served(partial(_VersionedHandler, self))


class _VersionedHandler(QuietHandler):
    def __init__(self, file: VersionedFile, *options: Any) -> None:
        self._file = file
        super().__init__(*options)

    def do_HEAD(self) -> None:
        file = self._file
        self.send_response_only(file.status)
        lengths = {"Content-Length": str(len(file.body))} if file.length else {}
        for name, value in {**lengths, **file.headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self._file.before_body()
        self.do_HEAD()
        if self._file.status == 200:
            self.wfile.write(self._file.body[: self._file.sent])
