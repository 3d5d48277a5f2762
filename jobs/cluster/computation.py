"""What a run computes with: the kind of device, the precision and the batches of its detectors.

They belong to a run from its first image to its last, because a label in bf16 differs from one in
fp32. They are found out once, where the detectors will be, and never by each detector by itself: a
pool may hold GPUs that multiply bf16 and others that do not.
"""

import ray
from ray.autoscaler.v2.sdk import request_cluster_resources

from jobs.cluster.placement import Placement
from model.computation import Computation, computation_here
from pipeline.isolation.watchdog import STALL_SECONDS, Stalled
from pipeline.stages.detect import CPU_THREADS
from pipeline.storage.errors import InputError
from pipeline.storage.urls import mask


def computation_of_detectors(
    placement: Placement,
    precision: str,
    count: int | None,
    cluster: bool,
    seconds: float = STALL_SECONDS,
) -> Computation:
    """What the detectors of a placement compute with. `precision` may be "auto", `count` None.

    On a `cluster` a task on one of the detectors' nodes answers. All nodes that the run needs are
    requested meanwhile, because an autoscaler may have to start them. Raises InputError if the
    node cannot run detectors, and Stalled if there is none after some `seconds`.
    """
    if not cluster:
        return computation_here(placement.device, precision, CPU_THREADS, count)
    pool = placement.layout.detectors
    task = ray.remote(computation_here).options(
        num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, label_selector=pool.nodes or None
    )
    gcs = ray.get_runtime_context().gcs_address
    request_cluster_resources(gcs, placement.demand())
    try:
        found: Computation = ray.get(
            task.remote(placement.device, precision, CPU_THREADS, count), timeout=seconds
        )
    except ray.exceptions.GetTimeoutError as error:
        raise Stalled(seconds) from error
    except ray.exceptions.RayError as error:
        reason = mask(str(error).strip().splitlines()[-1])
        raise InputError(f"a worker for detectors cannot run them: {reason}") from error
    finally:
        request_cluster_resources(gcs, [])  # from now on, waiting actors request the nodes
    return found
