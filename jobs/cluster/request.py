"""What a run asks of machines: detectors of a kind and number, and where they may be."""

import re
from dataclasses import dataclass, field

from jobs.cluster.node_labels import Labels, selector
from pipeline.storage.errors import InputError

# Of the logical memory of a node. A detector of the largest model takes 1.3 GiB on a CPU for one
# picture (`bench model`, 2026-11-24), and as much of the host for loading where it is on a GPU.
MEMORY, TINY_MEMORY = 2 << 30, 512 << 20


@dataclass(frozen=True)
class ClusterRequest:
    """Machines for one run."""

    device: str  # "auto", "cpu" or "cuda"
    fewest_gpus: int  # of detectors on GPUs
    most_gpus: int
    memory: int  # bytes of a node's logical memory for each detector
    address: str | None = None  # of a Ray cluster; None: this machine
    detect_on: Labels = field(default_factory=dict)
    prepare_on: Labels = field(default_factory=dict)


def cluster_request(
    device: str,
    num_gpus: str,
    model: str,
    address: str | None = None,
    detect_on: str | None = None,
    prepare_on: str | None = None,
) -> ClusterRequest:
    """The request that options of `label` make. InputError where one of them cannot be meant.

    `num_gpus` is a number, or a range like "2-8".
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", num_gpus)
    fewest = int(found[1]) if found else 0
    most = int(found[2] or fewest) if found else 0
    if not 1 <= fewest <= most:
        raise InputError(f"--num-gpus {num_gpus}: give a number, or a range like 2-8")
    memory = TINY_MEMORY if model == "shapes-tiny" else MEMORY
    return ClusterRequest(
        device, fewest, most, memory, address, selector(detect_on), selector(prepare_on)
    )
