"""The ingress of the endpoint: the HTTP side, and the engine that it asks."""

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from jobs.serve.app import make_app
from jobs.serve.batches.store import Store
from jobs.serve.engine.parts import ServedModel
from jobs.serve.engine.serve_engine import ServeEngine
from jobs.serve.http.limits_actor import ActorCounter
from jobs.serve.settings.options import ServeOptions


@serve.ingress()
class Api:
    """A replica of the HTTP side. Ray Serve mounts the app that it builds."""

    def __init__(
        self,
        options: ServeOptions,
        served: ServedModel,
        decoding: DeploymentHandle,
        detecting: DeploymentHandle,
        batching: DeploymentHandle | None,
    ):
        """`batching` is not asked: it is named here to be a part of the application."""
        self._options, self._served = options, served
        self._decoding, self._detecting = decoding, detecting

    def __serve_build_asgi_app__(self) -> FastAPI:
        engine = ServeEngine(self._served, self._decoding, self._detecting)
        batches = self._options.batches
        return make_app(
            self._options.api_settings(),
            engine,
            None if batches is None else Store(batches),
            counter=ActorCounter(),
            sends_request_ids=False,  # the proxy of Ray Serve (2.60) sends them
        )
