"""The endpoint as an application of Ray Serve: which replicas there are, and what they may hold.

    one machine: client -> ListeningApi -> Decoding -> Detecting
    a cluster:   client -> proxy -> Api -> Decoding -> Detecting

`detr-batch serve` deploys it. On Kubernetes a RayService imports `app` of this module.
"""

import logging
import os
from dataclasses import fields, replace
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentStatus

from jobs.cluster.computation import computation_of_detectors
from jobs.cluster.placement import Placement, placement_on
from jobs.cluster.start import alive_nodes
from jobs.serve.api import Api, ListeningApi
from jobs.serve.batches.batching import Batching
from jobs.serve.batches.settings import batch_settings
from jobs.serve.engine.decoders import Decoding
from jobs.serve.engine.detectors import Detecting
from jobs.serve.engine.spec import EngineSpec, engine_spec
from jobs.serve.http.shared_actors import end_actors
from jobs.serve.settings.options import ActionOptions, ServeOptions
from jobs.serve.settings.sharing import (
    NOTHING_RESERVED,
    BatchShare,
    detectors_that_fit,
    share_detectors,
)
from model.description import Description
from model.detectors import describe, settled
from model.zoo import offered_precision
from pipeline.dataflow import ACTOR_CPUS, TASK_CPUS
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.urls import mask, printable

NAME = "detr-batch"  # of the application
# Calls that a replica holds beside the one that it computes. What is more waits in the caller,
# which looks for a free replica in intervals of up to half a second (Ray 2.60).
CALLS_AHEAD = 32
CALLS_PER_DETECTOR = 4  # of a replica of Api: some are decoded while others are computed
# Requests that a replica of Api reads, answers or refuses. The proxy refuses what is more, without
# the form of OpenAI's errors.
REQUESTS = 1024
DECODERS_PER_DETECTOR = 4  # at most, on a cluster
MOST_APIS = 8  # on a cluster
CPUS_PER_API = 4  # of this machine; a replica answers 100 requests/s of one image each
REQUESTS_PER_API = 32  # in flight, on a cluster, before there is another
CLOSE_SECONDS = 5.0  # for the calls that a replica still computes when it shall end
HEALTH_SECONDS = 5.0  # between two checks of a replica
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
START_ATTEMPTS = 3  # at a replica that cannot start

# Detectors on CPUs take all cores. What reads, refuses and decodes goes before them.
NICENESS = 5
# Ray Serve's own settings of an endpoint on one machine: pauses of its controller, and of metrics
# that nobody reads there. With them, and without actors that one replica shares with none, an idle
# endpoint takes 48 to 59 ms of a core a second, and took 83 to 91 (two shared cores, 2026-11-28).
QUIETER = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
}
DETECTING: tuple[type[Detecting], tuple[Any, ...]] = Detecting, (NICENESS,)


def quieten_ray_serve() -> None:
    """Let a Ray that starts here afterwards spend less on Ray Serve. What a user has set stays."""
    for name, value in QUIETER.items():
        os.environ.setdefault(name, value)


def start(app: Application, host: str, port: int, on_cluster: bool) -> None:
    """Start the replicas of the application, and wait until all of them can answer.

    Ray has been started. On a cluster its proxies listen at `host` and `port`, and on one machine
    the application does. Raises CommandFailed if a replica cannot start.
    """
    _hush_serve()
    try:
        serve.start(
            proxy_location="EveryNode" if on_cluster else "Disabled",
            http_options={"host": host, "port": port},
            logging_config=LOGGING,
        )
        serve.run(app, name=NAME, route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        reason = printable(mask(_reason_of_failure(error)))
        raise CommandFailed(f"the endpoint does not start: {reason}") from error


def _hush_serve() -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def _reason_of_failure(error: Exception) -> str:
    """The last line of what a deployment says that has failed, else of the error itself."""
    application = serve.status().applications.get(NAME)
    deployments = application.deployments.values() if application else ()
    failed = [one.message for one in deployments if one.status == DeploymentStatus.DEPLOY_FAILED]
    lines = [line for line in "\n".join([str(error), *failed]).splitlines() if line.strip()]
    return lines[-1].strip()


def app(arguments: dict[str, Any]) -> Application:
    """The application of a Serve configuration, whose `args` are options of `detr-batch serve`.

    It runs on the cluster that it will serve on. Raises InputError for wrong options.
    """
    of_command = {one.name for one in fields(ActionOptions)} | {"address", "host", "port"}
    known = {field.name for field in fields(ServeOptions)} - of_command
    if unknown := sorted(arguments.keys() - known):
        raise InputError(f"args: {', '.join(unknown)} cannot be given; there are {sorted(known)}")
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()
    }
    # The proxies of a configuration listen where it says, so keys are needed in any case.
    options = ServeOptions(**given, host="0.0.0.0", address="auto")
    options.check()
    detector = describe(settled(options.model), options.weights)
    nodes = list(alive_nodes().values())
    return build(options, detector, placement_on(options.machines(), nodes, cluster=True))


def build(options: ServeOptions, detector: Description, placement: Placement) -> Application:
    """The application that serves a described detector on these machines."""
    precision = offered_precision(options.model, detector.precisions, options.precision)
    computation = computation_of_detectors(placement, precision, None, bool(options.address))
    fitting = detectors_that_fit(placement, list(alive_nodes().values()), bool(options.address))
    placement, share = share_detectors(options, placement, fitting)
    spec = engine_spec(options, detector, computation)
    return application(options, spec, placement, share=share)


def end(on_cluster: bool = False) -> None:
    """End the application. Requests under way have CLOSE_SECONDS.

    On a cluster end Ray Serve too, unless it has other applications: its proxies would go on to
    listen at this host and port.
    """
    _hush_serve()
    serve.delete(NAME)
    end_actors()
    if on_cluster and not serve.status().applications:
        serve.shutdown()


def application(
    options: ServeOptions,
    spec: EngineSpec,
    placement: Placement,
    detecting: tuple[type, tuple[Any, ...]] = DETECTING,
    share: BatchShare = NOTHING_RESERVED,
) -> Application:
    """The application that serves a detector on these machines.

    `detecting` is the class that detects, with what its constructor takes after the spec. `share`
    is what batches have.
    """
    pool, on_cluster = placement.layout.detectors, bool(options.address)
    preparers = placement.layout.preparers
    decoders = preparers or DECODERS_PER_DETECTOR * pool.most
    decoding = serve.deployment(Decoding).options(
        **_replicas(1, decoders, CALLS_AHEAD / 4)
        if preparers is None
        else _replicas(decoders, decoders, CALLS_AHEAD),
        **_common(ACTOR_CPUS, CALLS_AHEAD, options.max_queue),
    )
    cpus = int(ray.cluster_resources().get("CPU", 1))
    apis = (1, MOST_APIS) if on_cluster else (max(1, cpus // CPUS_PER_API),) * 2
    served = replace(
        spec.served,
        calls=CALLS_PER_DETECTOR * pool.most,
        large=large_at_once(pool.most, decoders, apis[1]),
    )
    calls, (kind, arguments) = spec.detector.calls, detecting
    detectors = serve.deployment(kind).options(
        **_replicas(pool.fewest, pool.most, calls),
        **_common(
            pool.num_cpus,
            calls + CALLS_AHEAD,
            options.max_queue,
            num_gpus=pool.num_gpus,
            memory=pool.memory,
        ),
    )
    api = serve.deployment(Api if on_cluster else ListeningApi).options(
        **_replicas(*apis, REQUESTS_PER_API),
        **_common(TASK_CPUS, REQUESTS, REQUESTS),
    )
    computing = decoding.bind(spec.decoding), detectors.bind(spec, *arguments)
    is_alone = apis == (1, 1)
    return api.bind(options, served, is_alone, *computing, _batching(options, share))


def large_at_once(detectors: int, decoders: int, apis: int) -> int:
    """How many large images each replica of Api may have under way.

    As many as there are detectors, if a decoder stays free of those of all replicas, but one in any
    case: with fewer decoders than replicas they may take all.
    """
    return max(1, min(detectors, (decoders - 1) // apis))


def _batching(options: ServeOptions, share: BatchShare) -> Application | None:
    if options.batches is None:
        return None
    kind = serve.deployment(Batching).options(num_replicas=1, **_common(TASK_CPUS, 1, 1))
    return kind.bind(options.batches, batch_settings(options, share))


def _replicas(fewest: int, most: int, target: float) -> dict[str, Any]:
    """A number of replicas, or one that follows the calls in flight: `target` for each."""
    if fewest == most:
        return {"num_replicas": most}
    scaling = AutoscalingConfig(
        min_replicas=fewest, max_replicas=most, target_ongoing_requests=target
    )
    return {"autoscaling_config": scaling}


def _common(num_cpus: float, calls: int, queued: int, **resources: Any) -> dict[str, Any]:
    return {
        "ray_actor_options": {"num_cpus": num_cpus, **resources},
        "max_ongoing_requests": calls,
        "max_queued_requests": queued,
        "graceful_shutdown_timeout_s": CLOSE_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.1,
        "health_check_period_s": HEALTH_SECONDS,
        "max_constructor_retry_count": START_ATTEMPTS,
        "logging_config": LOGGING,
    }
