"""`detr-batch bench serve`: the endpoint under load, beside its detectors alone."""

import asyncio
import io
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
import ray
from PIL import Image

from jobs.bench.measure import FEWEST_ROUNDS, Measurement, milliseconds
from jobs.bench.serve.alone import Alone
from jobs.bench.serve.clients import Load, bodies_of, run_clients
from jobs.bench.serve.simulated import SimulatedDetecting
from jobs.cluster.placement import placement_on
from jobs.cluster.start import alive_nodes, start_ray
from jobs.demo.scenes import render_scene
from jobs.serve.deploy import DETECTING, application, end, quieten_ray_serve, start
from jobs.serve.engine.spec import local_engine_spec
from jobs.serve.serve import free_port
from jobs.serve.settings.options import ServeOptions
from pipeline.storage.errors import CommandFailed

SIZE = (400, 288)  # width and height of the images; shapes-tiny needs no resizing at this size
IMAGES = 20  # different ones, which are sent in turn
ALONE = 0  # in the place of a number of clients
OURS = "detr-batch serve"


@dataclass
class Endpoint:
    """A running endpoint, and its detectors alone."""

    url: str
    bodies: list[bytes]
    per_request: int
    alone: Alone
    precision: str  # of the detectors

    def load(self, clients: int, seconds: float) -> Load:
        """Let clients ask. CommandFailed for any answer but images and refusals."""
        found = asyncio.run(run_clients(self.url, self.bodies, self.per_request, clients, seconds))
        if bad := found.statuses.keys() - {200, 429, 503}:
            raise CommandFailed(f"the endpoint answered {sorted(bad)}: nothing is measured")
        return found


@dataclass
class Turns:
    """All turns with one number of clients."""

    clients: int
    loads: list[Load] = field(default_factory=list)
    of_alone: list[float] = field(default_factory=list)  # share of the rate of the same round


def scenes() -> list[bytes]:
    """JPEG files of rendered scenes."""
    files = []
    for seed in range(IMAGES):
        file = io.BytesIO()
        pixels = render_scene(np.random.default_rng(seed), *SIZE).pixels
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


@contextmanager
def running(
    options: ServeOptions, device_seconds: float | None, per_request: int
) -> Iterator[Endpoint]:
    """An endpoint on this machine. With `device_seconds` its devices are simulated."""
    detecting = DETECTING
    if device_seconds is not None:
        detecting = SimulatedDetecting, (device_seconds,)
    quieten_ray_serve()
    start_ray(None)
    try:
        nodes = list(alive_nodes().values())
        placement = placement_on(options.machines(), nodes, cluster=False)
        options = replace(options, port=free_port(options.host, 0))
        spec = local_engine_spec(options)
        app = application(options, spec, placement, detecting)
        start(app, options.host, options.port, on_cluster=False)
        images = scenes()
        alone = Alone(spec, placement.layout.detectors.most, images, *detecting)
        url = f"http://{options.host}:{options.port}/v1/detections"
        try:
            bodies = bodies_of(options.model, images, per_request)
            precision = spec.detector.precision if device_seconds is None else "simulated"
            yield Endpoint(url, bodies, per_request, alone, precision)
        finally:
            alone.close()
            end()
    finally:
        ray.shutdown()


def bench_endpoint(endpoint: Endpoint, clients: Sequence[int], seconds: float) -> list[Turns]:
    """Take turns of `seconds`: the detectors alone, and each number of clients, in random order."""
    turns = {count: Turns(count) for count in clients}
    for count in clients:
        endpoint.load(count, min(1.0, seconds))  # connections, and caches of code
    for _ in range(FEWEST_ROUNDS):
        rates: dict[int, float] = {}
        for count in random.sample([ALONE, *clients], len(clients) + 1):
            if count == ALONE:
                rates[ALONE] = endpoint.alone.images_per_second(seconds)
                continue
            found = endpoint.load(count, seconds)
            turns[count].loads.append(found)
            rates[count] = found.images_per_second
        for count in clients:
            turns[count].of_alone.append(rates[count] / rates[ALONE])
    return list(turns.values())


def measurement(turns: Turns, per_request: int, detector: str, precision: str) -> Measurement:
    """The row of the results for one number of clients."""
    took = [second for load in turns.loads for second in load.took]
    refused = [second for load in turns.loads for second in load.refused]
    rate = median(load.images_per_second for load in turns.loads)
    details = {
        "p99_ms": round(1e3 * float(np.percentile(took, 99)), 1),
        "of_alone": round(median(turns.of_alone), 3),
        "alone": round(rate / median(turns.of_alone), 1),
        "answered": len(took),
        "refused": len(refused),
        # Near 1, the clients are the limit, and the row says little of the endpoint.
        "client_cores": round(max(load.cpu_seconds / load.seconds for load in turns.loads), 2),
    }
    if refused:
        details["refusal_p99_ms"] = round(1e3 * float(np.percentile(refused, 99)), 1)
        details["refusal_max_ms"] = round(1e3 * max(refused), 1)
    return Measurement(
        benchmark="serve",
        case=f"{turns.clients} clients, {detector}",
        subject=OURS,
        batch=per_request,
        precision=precision,
        **milliseconds(took),
        images_per_second=rate,
        peak_memory_mib=None,
        error=0.0,  # `load` passes no other answers
        details=details,
    )


def as_text(measured: Sequence[Measurement]) -> str:
    """A table with a line for each number of clients."""
    lines = [
        f"{'case':<52} {'images/s':>8} {'of alone':>8} {'p50 ms':>8} {'p99 ms':>8} {'refused':>8} "
        f"{'within ms':>9} {'clients':>7}"
    ]
    for row in measured:
        found = row.details
        lines.append(
            f"{row.case:<52} {row.images_per_second:>8.1f} {found['of_alone']:>8.1%} "
            f"{row.p50_ms:>8.0f} {found['p99_ms']:>8.0f} {found['refused']:>8} "
            f"{found.get('refusal_max_ms', 0.0):>9.0f} {found['client_cores']:>7.0%}"
        )
    return "\n".join(lines)
