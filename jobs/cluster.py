"""The Ray that a run is on: started or joined, and how many workers of each stage fit on it."""

import logging

import ray

from jobs.label_options import LabelOptions
from pipeline.dataflow import FlowSettings
from pipeline.storage import InputError


def pool_sizes(device: str, num_gpus: int) -> tuple[int, int]:
    """Detectors, and preparers at most. On CPUs a detector takes all cores of its machine."""
    cpus = int(ray.cluster_resources().get("CPU", 1))
    if device == "cpu":
        return sum(node["Alive"] for node in ray.nodes()), max(1, cpus // 2)
    return num_gpus, max(1, cpus)


def stage_workers(settings: FlowSettings) -> dict[str, int]:
    """How many of each stage can work at once; readers and stagers hold a quarter of a CPU each."""
    light = 4 * int(ray.cluster_resources().get("CPU", 1))
    return {
        "read": light,
        "prepare": settings.preparers,
        "detect": settings.detectors,
        "stage": light,
    }


def measured_cpus(options: LabelOptions) -> int | None:
    """CPUs of a run that is all on this machine; those of a cluster's machines are not measured."""
    return None if options.address else int(ray.cluster_resources().get("CPU", 1))


def start_ray(options: LabelOptions) -> None:
    """Connect to the cluster, or start a local one that ends with this process."""
    # Their news, and tracebacks of what `carry_out` says in a line, are for Ray's own log files.
    for name, level in (("ray", logging.WARNING), ("ray.data", logging.CRITICAL)):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(level)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # ours is shown
    if ray.is_initialized():
        return
    address = options.address or "local"  # not one that was left running
    try:
        ray.init(
            address=address, log_to_driver=False, include_dashboard=False, configure_logging=False
        )
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--address {address}: no Ray cluster answers there, or it takes another token "
            f"(RAY_AUTH_TOKEN, RAY_AUTH_MODE): {reason}"
        ) from error
