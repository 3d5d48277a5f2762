"""Web servers on loopback, which tests make of a handler of requests."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


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
