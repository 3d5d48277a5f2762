"""`detr-batch bench serve`: checks its options, measures and prints."""

import json
from dataclasses import asdict

from jobs.bench.measure import RESULTS, append
from jobs.bench.options import ServeBenchOptions
from jobs.bench.serve.endpoint import as_text, bench_endpoint, measurement, running
from jobs.serve.settings.options import ServeOptions
from pipeline.storage.errors import InputError


def serve(options: ServeBenchOptions) -> None:
    """Put an endpoint of this machine under load. InputError for numbers that make no sense."""
    counts = options.clients.split(",")
    if not all(count.isdigit() and int(count) for count in counts):
        raise InputError("--clients must be at least 1, or several such with commas between")
    simulated = options.device_seconds
    if simulated is not None and simulated <= 0:
        raise InputError("--device-seconds must be above 0")
    if options.images < 1 or options.seconds <= 0:
        raise InputError("--images must be at least 1, and --seconds above 0")
    served = ServeOptions(
        model=options.model,
        weights=options.weights,
        max_images=options.images,
        max_queue=max(options.queue, options.images),
        device=options.device,
        precision=options.precision,
    )
    served.check()
    with running(served, simulated, options.images) as endpoint:
        turns = bench_endpoint(endpoint, [int(count) for count in counts], options.seconds)
        precision = endpoint.precision
    device = options.model if simulated is None else f"simulated devices of {simulated:g} s"
    measured = [measurement(one, options.images, device, precision) for one in turns]
    append(measured, options.device, options.results or RESULTS)
    if options.json:
        print(json.dumps([asdict(row) for row in measured], indent=1))
    else:
        print(as_text(measured))
