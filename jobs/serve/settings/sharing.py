"""The detectors that batches have for themselves, so that neither they nor requests starve.

On CPUs of one machine nothing is reserved by default, because cores would be idle where one of the
two has nothing to do. There the niceness of their processes makes the shares.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.cluster.placement import Node, Placement
from jobs.cluster.ray_internals import read_autoscaler
from jobs.serve.settings.options import ServeOptions
from pipeline.storage.errors import InputError

DETECTORS_PER_ONE_OF_BATCHES = 4
GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class BatchShare:
    """What the run of a batch may use."""

    detectors: int | None = None  # None: as many as `label` takes by itself
    on_gpus: bool = False
    # CUDA_VISIBLE_DEVICES of the run. Ray hides all GPUs from actors that ask for none.
    gpus: str | None = None


NOTHING_RESERVED = BatchShare()


def detectors_that_fit(placement: Placement, nodes: Sequence[Node], on_cluster: bool) -> float:
    """How many detectors the machines hold; inf where an autoscaler makes more of them."""
    if on_cluster and read_autoscaler().version:
        return math.inf
    if not placement.layout.detectors.num_gpus:
        return placement.layout.detectors.most
    return placement.fitting(nodes)


def share_detectors(
    options: ServeOptions, placement: Placement, fitting: float
) -> tuple[Placement, BatchShare]:
    """The placement of the detectors of requests, and what is left for batches.

    `fitting` detectors fit on the machines. Raises InputError if --batch-detectors leaves too few.
    """
    pool, given = placement.layout.detectors, options.batch_detectors
    on_gpus = bool(pool.num_gpus)
    shared = placement, BatchShare(gpus=os.environ.get(GPUS))
    if options.batches is None or (given is None and not options.address and not on_gpus):
        return shared
    ours = given or max(1, pool.most // DETECTORS_PER_ONE_OF_BATCHES)
    most, fewest = int(min(pool.most, fitting - ours)), pool.fewest if on_gpus else 1
    if most < fewest and given is None:
        return shared
    if most < fewest:
        raise InputError(
            f"--batch-detectors {given}: {fitting:g} detectors fit, and requests need {fewest} of "
            "them; give a smaller number, or leave it out"
        )
    pool = replace(pool, fewest=min(pool.fewest, most), most=most)
    of_requests = replace(placement, layout=replace(placement.layout, detectors=pool))
    gpus = None if options.address or not on_gpus else last_gpus(int(fitting), ours)
    return of_requests, BatchShare(ours, on_gpus, gpus)


def last_gpus(count: int, wanted: int) -> str:
    """The last of the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them.

    Ray gives the first ones that are free to the detectors of requests.
    """
    named = os.environ.get(GPUS)
    names = named.split(",") if named else [str(number) for number in range(count)]
    return ",".join(names[-wanted:])
