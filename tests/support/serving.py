"""The endpoint on loopback, without Ray: its app, an engine of this process, and uvicorn."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from PIL import Image

from jobs.demo.scenes import scene
from jobs.serve.app import make_app
from jobs.serve.engine.engine import Engine
from jobs.serve.engine.in_process_engine import InProcessEngine
from jobs.serve.engine.spec import engine_spec
from jobs.serve.http.connections import TimedProtocol
from jobs.serve.settings.options import ServeOptions
from jobs.serve.settings.settings import ApiSettings
from model.computation import computation_here
from model.detectors import describe

START_SECONDS = 20.0
CONNECTIONS = 200
MODEL = "shapes-tiny"


def shapes_engine() -> InProcessEngine:
    """An engine of shapes-tiny with its packaged weights, in fp32 on the CPU."""
    options = ServeOptions(model=MODEL)
    described = describe(MODEL, None)
    return InProcessEngine(engine_spec(options, described, computation_here("cpu", "fp32", 1, 1)))


@contextmanager
def serving(settings: ApiSettings, engine: Engine, **options: Any) -> Iterator[str]:
    """Serve on a free port of loopback; the address, such as `http://127.0.0.1:8000`.

    `options` are those of `make_app`.
    """
    app = make_app(settings, engine, **options)
    config = uvicorn.Config(
        app,
        port=0,
        http=TimedProtocol,
        limit_concurrency=CONNECTIONS,
        log_level="error",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + START_SECONDS
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def scene_file(seed: int = 0, format: str = "JPEG") -> bytes:
    """The file of an image with shapes that shapes-tiny knows."""
    file = io.BytesIO()
    Image.fromarray(scene(seed, 0).pixels).save(file, format)
    return file.getvalue()


def data_uri(encoded: bytes, kind: str = "image/jpeg") -> str:
    """An image as a `data:` address."""
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"
