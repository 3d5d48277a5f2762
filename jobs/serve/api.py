"""The HTTP side of the endpoint as replicas: behind the proxies of a cluster, or without one."""

import asyncio
import socket

import uvicorn
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from jobs.serve.app import make_app
from jobs.serve.batches.store import Store
from jobs.serve.engine.parts import ServedModel
from jobs.serve.engine.serve_engine import ServeEngine
from jobs.serve.http.connections import KEEP_ALIVE_SECONDS, TimedProtocol
from jobs.serve.http.shared_actors import ActorCounter, ActorTotals
from jobs.serve.settings.options import ServeOptions

# Connections of a replica that listens itself, and requests in its hands. A connection without a
# request makes room for another; what is more is answered 503 at its head, without the form of
# OpenAI's errors.
CONNECTIONS = 1024
BACKLOG = 2048  # connections that the system holds until a replica takes them
CLOSE_SECONDS = 4  # for requests under way when a replica shall end; Ray Serve gives it 5
LOOK_SECONDS = 0.01  # between two looks whether it listens


@serve.ingress()
class Api:
    """A replica behind the proxies of Ray Serve, which mounts the app that it builds."""

    def __init__(
        self,
        options: ServeOptions,
        served: ServedModel,
        is_alone: bool,
        decoding: DeploymentHandle,
        detecting: DeploymentHandle,
        batching: DeploymentHandle | None,
    ):
        """`is_alone` says whether there is no other replica.

        `batching` is not asked: it is named here to be a part of the application.
        """
        self._options, self._is_alone = options, is_alone
        self._engine = ServeEngine(served, decoding, detecting)

    def __serve_build_asgi_app__(self) -> FastAPI:
        # The proxies of Ray Serve (2.60) send request ids.
        return _app(self._options, self._engine, self._is_alone, sends_request_ids=False)


class ListeningApi:
    """A replica that listens itself, on one machine. A proxy would cost a request 5 ms of a core.

    Several replicas share the port, and the system gives each new connection to one of them.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        options: ServeOptions,
        served: ServedModel,
        is_alone: bool,
        decoding: DeploymentHandle,
        detecting: DeploymentHandle,
        batching: DeploymentHandle | None,
    ) -> None:
        """As of `Api`. Raises OSError if nothing can listen at the host and port of the options."""
        engine = ServeEngine(served, decoding, detecting)
        app = _app(options, engine, is_alone, sends_request_ids=True)
        config = uvicorn.Config(
            app,
            backlog=BACKLOG,
            http=TimedProtocol,
            ws="none",
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            log_config=None,
            access_log=False,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        sockets = [shared_socket(options.host, options.port)]
        self._serving = asyncio.create_task(self._server.serve(sockets))
        while not self._server.started:
            self.check_health()
            await asyncio.sleep(LOOK_SECONDS)

    def check_health(self) -> None:
        """Raise if it listens no more: Ray Serve then replaces this replica."""
        if self._serving.done():
            raise RuntimeError("the HTTP server has ended")

    async def __del__(self) -> None:
        """End the server. Ray Serve calls and awaits this before it ends the replica."""
        self._server.should_exit = True
        await self._serving


def shared_socket(host: str, port: int) -> socket.socket:
    """A socket at a host and port that other processes of this user may share. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind(address)
    return found


def _app(
    options: ServeOptions, engine: ServeEngine, is_alone: bool, sends_request_ids: bool
) -> FastAPI:
    batches = options.batches
    return make_app(
        options.api_settings(),
        engine,
        None if batches is None else Store(batches),
        # The actors that replicas share take an idle machine 12 to 14 ms of a core a second.
        counter=None if is_alone else ActorCounter(),
        totals=None if is_alone else ActorTotals(),
        sends_request_ids=sends_request_ids,
    )
