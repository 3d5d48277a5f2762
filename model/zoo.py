"""`create_model`: DETR and Deformable DETR, ready to run or to be trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch

from model.checkpoint import State, load_state, read_weights
from model.config import DetrConfig, SetConfig
from model.deformable_detr import DeformableDetr
from model.detr import Detr
from model.errors import CheckpointError, UnknownName
from model.fallback import prepare_with_fallback
from model.inference import prepare_detr, prepare_for_inference, prepare_in_int8
from model.named import MODELS, RANDOM, set_config, weights_of
from model.ops import lacking_for_triton
from model.ops.torch_internals import multiplies_bf16
from model.set_detector import Padding, SetDetector
from model.weights import find_weights
from model.weights_file import labels_of

MIXED, INT8 = "mixed", "int8"  # for inference alone
# Dtypes of encoder and decoder, and of the trunk.
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    MIXED: torch.float16,
    INT8: torch.bfloat16,
}
TRUNK_DTYPES = DTYPES | {MIXED: torch.bfloat16}
Net = TypeVar("Net", bound=SetDetector)
AUTO = "auto"
PRECISIONS = (AUTO, *DTYPES)
INT8_FROM = (8, 0)  # the compute capability that multiplies bf16, too


def offered_precision(model: str, offered: Sequence[str], precision: str) -> str:
    """The precision of a run: `precision`, or "fp32" for "auto" if bf16 is not `offered`.

    Raises UnknownName if the model does not offer it.
    """
    if precision == AUTO:
        return AUTO if "bf16" in offered else "fp32"
    if precision in DTYPES and precision not in offered:
        raise UnknownName(
            f"{model} has no precision {precision!r}: choose one of {', '.join((AUTO, *offered))}"
        )
    return precision


def resolved_precision(precision: str, device: str) -> str:
    """The key of DTYPES for a precision on a device.

    "auto" is bf16 if the hardware multiplies bf16 (GPUs from compute capability 8.0, CPUs with
    AVX512-BF16 or AMX), else fp32. Raises UnknownName for an unknown precision, and for one that
    the device lacks.
    """
    if precision not in PRECISIONS:
        raise UnknownName(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        if torch.device(device).type == "cuda":
            capable = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            capable = multiplies_bf16()
        return "bf16" if capable else "fp32"
    if precision == INT8 and (lacking := _lacking_for_int8(device)):
        raise UnknownName(f"precision {INT8!r} is for GPUs, and {lacking}: choose bf16 or auto")
    return precision


def _lacking_for_int8(device: str) -> str:
    """What keeps int8 from this device; empty where nothing does."""
    if torch.device(device).type != "cuda":
        return "the detectors would run on a CPU"
    if torch.cuda.get_device_capability(device) < INT8_FROM:
        name, least = torch.cuda.get_device_name(device), "{}.{}".format(*INT8_FROM)
        return f"{name} is below compute capability {least}"
    return lacking_for_triton()


def create_model(
    name: str,
    weights: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    padding: Padding = "published",
    labels: Sequence[str] | None = None,
    seed: int = 0,
    training: bool = False,
    sha256: str | None = None,
) -> SetDetector:
    """A detector ready to run, in evaluation mode.

    Args:
        name: a key of `MODELS`.
        weights: None for the model's own weights; "random" for seeded random weights; "packaged" or
            the name of a model (see `weights_of`); else a path, any fsspec URL (a suffix
            `#sha256=<hex>` is checked) or a hub id.
        device: "cpu", "cuda", "cuda:1", ...
        precision: "fp32", "bf16", "fp16", "mixed" (the trunk in bf16, encoder and decoder in fp16,
            and in bf16 for an image that overflows it), "int8" (bf16, but the encoder's
            feed-forward networks in int8; on GPUs alone), or "auto" (see `resolved_precision`).
            "mixed" and "int8" are for inference alone.
        padding: "published" (the original's arithmetic) or "invariant" (an image in a padded batch
            gives the same result as alone).
        labels: class names, for training. Where they differ, heads start with new weights.
        seed: the seed of random weights.
        training: keep all parameters in fp32 and as in checkpoints, so that they can be trained or
            saved. By default the model is prepared for inference, with the same results but faster
            (model/inference.py).
        sha256: the digest that the file of the weights must have.

    Raises:
        ValueError: the name or the precision is unknown, or the weights cannot be read or do not
            fit the model.
    """
    config: SetConfig = set_config(name)
    offered_precision(name, config.precisions, precision)
    if training and precision in (MIXED, INT8):
        raise ValueError(
            f"precision {precision!r} is for inference: train in bf16, and detect in {precision}"
        )
    precision = resolved_precision(precision, device)
    dtype = DTYPES[precision]
    state: State | None = None
    place = weights_of(name, weights)
    if place != RANDOM:
        path = find_weights(place)
        state, metadata = read_weights(path, sha256)
        if "labels" in metadata:
            config = replace(config, labels=tuple(labels_of(metadata, state, str(path))))
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(config, padding)
        if state is not None:
            try:
                load_state(net, state, weights or name)
            except CheckpointError as error:
                trained_as = metadata.get("model")
                if trained_as not in MODELS or trained_as == name:
                    raise
                raise CheckpointError(
                    f"{weights} is of a training of {trained_as}, and does not fit {name}: give "
                    f"--model {trained_as}"
                ) from error
        if labels is not None and tuple(labels) != config.labels:
            net.replace_heads(tuple(labels))
            net.has_new_heads = True
        net = net.eval().to(device)
        if training:
            net.autocast_dtype = None if dtype == torch.float32 else dtype
            return net
        return prepare(net, precision)


def create_deformable_detr(name: str, *arguments: Any, **options: Any) -> DeformableDetr:
    """`create_model`, for those who use parts that only Deformable DETR has."""
    net = create_model(name, *arguments, **options)
    assert isinstance(net, DeformableDetr), f"{name} is no Deformable DETR"
    return net


def build(config: SetConfig, padding: Padding = "published") -> SetDetector:
    """The network of a configuration, with new weights."""
    if isinstance(config, DetrConfig):
        return Detr(config, padding)
    return DeformableDetr(config, padding)


def prepare(net: Net, precision: str) -> Net:
    """Prepare `net` for inference in place, in a precision of DTYPES that its family offers."""
    if isinstance(net, Detr):
        prepare_detr(net, DTYPES[precision])
        return net
    assert isinstance(net, DeformableDetr)
    if precision == MIXED:
        prepare_with_fallback(net)
    elif precision == INT8:
        prepare_in_int8(net, DTYPES[INT8])
    else:
        prepare_for_inference(net, DTYPES[precision])
    return net


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread within the block.

    A model is made by hundreds of short operations. If another process is busy, the threads of each
    wait for one another: on two cores it took 1.4 s instead of 0.06 s (2026-11-27).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
