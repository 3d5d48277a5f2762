"""The machines that a run requests: device and number of detectors, and the nodes for them."""

import re
from dataclasses import dataclass, field

from jobs.cluster.node_labels import Labels, selector
from pipeline.storage.errors import InputError

# Bytes of a node's logical memory for each detector. A detector of the largest model takes 1.3 GB
# on a CPU (2026-11-27), some of it shared with others: the code of torch. A detector on a GPU takes
# as much of the host's memory while it loads.
MEMORY, TINY_MEMORY = 3 << 29, 512 << 20
# Of detectors that get images as displayed, and resize them themselves. How large the largest image
# is, nobody knows before it is decoded: of 40 megapixels torchvision's needs 2.5 GB, and a detector
# of transformers 0.8 GB, its weights once, and 0.4 GB (2026-11-28: 1.2, 1.6 and 2.2 GB with weights
# of 1, 375 and 1079 MB in fp32).
LARGE_MEMORY = 3 << 30
WEIGHTS_INCLUDED = 500 << 20  # bytes of weights for which that has room
RESIZE_THEMSELVES = ("faster-rcnn", "hf:", "python:")  # how the names of these models begin


@dataclass(frozen=True)
class ClusterRequest:
    """The machines that one run requests."""

    device: str  # "auto", "cpu" or "cuda"
    fewest_gpus: int  # least number of detectors on GPUs
    most_gpus: int  # largest number of detectors on GPUs
    memory: int  # bytes of a node's logical memory for each detector
    address: str | None = None  # address of a Ray cluster; None means this machine
    detect_on: Labels = field(default_factory=dict)  # labels of nodes for detectors
    prepare_on: Labels = field(default_factory=dict)  # labels of nodes for other stages
    gpu_option: str = (
        "--device cuda"  # the option by which the user wants GPUs, if `device` says so
    )
    images: int | None = None  # number of images of the run; None if it is not known
    most_detectors: int | None = None  # on GPUs or CPUs; None: as many as fit


def cluster_request(
    device: str,
    num_gpus: str | None,
    model: str | None,
    address: str | None = None,
    detect_on: str | None = None,
    prepare_on: str | None = None,
    most_detectors: int | None = None,
) -> ClusterRequest:
    """Make a request from options of `label`. Raises InputError for a wrong value.

    `num_gpus` is a number, or a range like "2-8". Who gives one wants GPUs, and nothing else.
    `model` is None while it is not known: then it may be a large one.
    """
    option = "--device cuda" if num_gpus is None else f"--num-gpus {num_gpus}"
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", "1" if num_gpus is None else num_gpus)
    fewest = int(found[1]) if found else 0
    most = int(found[2] or fewest) if found else 0
    if num_gpus is not None and num_gpus.isdecimal() and not most:
        raise InputError(
            f"--num-gpus {num_gpus}: at least 1 is needed; without GPUs, leave the option out"
        )
    if not 1 <= fewest <= most:
        raise InputError(f"--num-gpus {num_gpus}: give a number, or a range like 2-8")
    if num_gpus is not None and device == "cpu":
        raise InputError(
            f"--num-gpus {num_gpus} --device cpu: on CPUs their cores decide how many detectors "
            "there are; leave out one of the two options"
        )
    if num_gpus is not None:
        device = "cuda"
    return ClusterRequest(
        device,
        fewest,
        most,
        memory_of_detector(model),
        address,
        selector(detect_on),
        selector(prepare_on),
        option,
        most_detectors=most_detectors,
    )


def memory_of_detector(model: str | None, weight_bytes: int = 0) -> int:
    """The bytes of a node's logical memory for a detector.

    `weight_bytes` are those of the weights of a detector of others, as far as they are known.
    """
    if model is not None and model.startswith(RESIZE_THEMSELVES):
        return LARGE_MEMORY + max(0, weight_bytes - WEIGHTS_INCLUDED)
    return TINY_MEMORY if model == "shapes-tiny" else MEMORY
