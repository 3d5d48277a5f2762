"""`detr-batch serve`: a detector behind HTTP, which clients of OpenAI speak, on Ray Serve."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from jobs.cluster.placement import Placement, placement_on
from jobs.cluster.request import ClusterRequest
from jobs.cluster.start import alive_nodes, check_machines, start_ray, wait_until_it_fits
from jobs.label.log.lines import print_line
from jobs.serve.batches.label_command import RAY_NICENESS
from jobs.serve.batches.store import Store
from jobs.serve.deploy import build, end, quieten_ray_serve, start
from jobs.serve.http.keys import REREAD_SECONDS, STALE_SECONDS, read_keys
from jobs.serve.running import refuse_second_endpoint, report_or_stop
from jobs.serve.settings.options import ServeOptions
from model.description import Description
from model.detectors import describe, settled
from model.named import RANDOM
from model.zoo import offered_precision
from pipeline.isolation import sandbox
from pipeline.storage.errors import InputError
from pipeline.storage.protocols import is_local
from pipeline.storage.urls import mask

EXIT_OK = 0


def serve(options: ServeOptions) -> int:
    """Serve until SIGINT or SIGTERM; return the exit code.

    Raises InputError before anything starts, and CommandFailed if the endpoint does not start.
    """
    options.check()
    if options.status or options.stop:
        report_or_stop(options)
        return EXIT_OK
    check_machines(options.machines())
    if not options.address:
        options = replace(options, port=free_port(options.host, options.port))
    options = replace(options, keys=_absolute(options.keys), batches=_absolute(options.batches))
    if options.keys is not None:
        read_keys(options.keys)  # what is wrong with them is known before anything starts
    if options.batches is not None:
        Store(options.batches).check()
    detector = describe(settled(options.model), options.weights)
    offered_precision(options.model, detector.precisions, options.precision)
    if missing := sandbox.why_absent():  # before Ray starts threads
        print_line(f"images are decoded without a sandbox on this machine: {missing}")
    where = "the cluster" if options.address else "this machine"
    print_line(f"starting Ray and the model on {where}")
    os.environ.setdefault(RAY_NICENESS, "0")  # of a Ray that starts here
    quieten_ray_serve()
    is_ours = False  # whether the endpoint is to end with this command
    try:
        with _signals(_interrupt):
            start_ray(options.address)
        with _signals(_interrupt):  # Ray has set handlers of its own
            if options.address:
                refuse_second_endpoint(options)
            is_ours = True
            _deploy(options, detector)
            print(greeting(options), flush=True)
            if options.detach:
                is_ours = False
                return EXIT_OK
            _wait(options.keys)
    except KeyboardInterrupt:
        print_line("ending: requests under way have a few seconds")
    finally:
        _end(is_ours, bool(options.address))
    return EXIT_OK


def _wait(keys: str | None) -> None:
    """Wait for a signal. Lines say when the keys cannot be read any more, and when they can."""
    if keys is None:
        signal.pause()
        return
    failure = ""
    while True:
        time.sleep(REREAD_SECONDS)
        before, failure = failure, _failure_of_keys(keys)
        if failure and not before:
            print_line(f"the keys of before hold for {STALE_SECONDS:.0f} s: {failure}")
        elif before and not failure:
            print_line("the keys can be read again")


def _failure_of_keys(keys: str) -> str:
    """Why the keys cannot be read; "" if they can."""
    try:
        read_keys(keys)
    except Exception as error:  # stores raise many types
        return mask(str(error))
    return ""


def _absolute(location: str | None) -> str | None:
    """A local path as replicas find it, whose working folder may be another one."""
    if location is None or not is_local(location) or "://" in location:
        return location
    return str(Path(location).absolute())


def free_port(host: str, port: int) -> int:
    """The port, or a free one if it is 0. Raises InputError if this host and port are not free."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({reason}); give another --port"
        ) from error


def _deploy(options: ServeOptions, detector: Description) -> None:
    """Start the replicas, and wait until all can answer. Raises CommandFailed if one cannot."""
    app = build(options, detector, _place(options.machines()))
    start(app, options.host, options.port, bool(options.address))
    if detector.weights == RANDOM:
        print_line("the weights are random: the boxes will mean nothing")


def _place(request: ClusterRequest) -> Placement:
    """The machines of the replicas. Raises InputError if they do not fit there."""
    if request.address:
        return wait_until_it_fits(request)
    nodes = list(alive_nodes().values())
    placement = placement_on(request, nodes, cluster=False)
    if lacks := placement.lacks(nodes):
        raise InputError(f"this machine is too small: {lacks}")
    return placement


def _end(is_ours: bool, on_cluster: bool) -> None:
    """End the endpoint if it is that of this command, and the Ray that was started for it."""
    with _signals(signal.SIG_DFL):  # a second signal ends this process at once
        if ray.is_initialized():
            if is_ours:
                end(on_cluster)
            ray.shutdown()


def greeting(options: ServeOptions) -> str:
    """Where the endpoint listens, and a line that asks it."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    key = "" if options.keys is None else ' -H "Authorization: Bearer $KEY"'
    url = f"http://{host}:{options.port}"
    return f"listening on {url}\n  curl {url}/v1/models{key}"


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _signals(handler: Any) -> Iterator[None]:
    """SIGINT and SIGTERM have this handler in the block."""
    before = {one: signal.signal(one, handler) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler_before in before.items():
            signal.signal(one, handler_before)
