"""The named models, and `create_model`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch

from model import config as configs
from model.checkpoint import State, load_state, read_weights
from model.config import DeformableDetrConfig, DetrConfig, FasterRcnnConfig, ModelConfig, SetConfig
from model.deformable_detr import DeformableDetr
from model.detr import Detr
from model.errors import CheckpointError, UnknownName
from model.fallback import prepare_with_fallback
from model.inference import prepare_detr, prepare_for_inference, prepare_in_int8
from model.ops import lacking_for_triton
from model.ops.undocumented import multiplies_bf16
from model.set_detector import Padding, SetDetector
from model.weights import find_weights
from model.weights_file import labels_of

PACKAGED = Path(__file__).parent / "shapes_tiny.safetensors"
RANDOM = "random"
PACKAGED_NAME = "packaged"
TORCHVISION = "torchvision"  # the checkpoint that torchvision publishes for the model
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


@dataclass(frozen=True)
class NamedModel:
    """A model that users select by name.

    `weights` names the model's own weights: a hub id, a packaged file or TORCHVISION. `gmacs` is
    the number of multiply-adds, in billions, of its convolutions and matrix products on an image of
    640 x 480, as torch counts them.
    """

    name: str
    config: Callable[[], ModelConfig]
    weights: str
    gmacs: float


MODELS = {
    named.name: named
    for named in (
        NamedModel("deformable-detr", configs.deformable_detr, "SenseTime/deformable-detr", 163.7),
        NamedModel(
            "deformable-detr-single-scale",
            configs.deformable_detr_single_scale,
            "SenseTime/deformable-detr-single-scale",
            76.1,
        ),
        NamedModel(
            "deformable-detr-single-scale-dc5",
            configs.deformable_detr_single_scale_dc5,
            "SenseTime/deformable-detr-single-scale-dc5",
            124.7,
        ),
        NamedModel(
            "deformable-detr-with-box-refine",
            configs.deformable_detr_with_box_refine,
            "SenseTime/deformable-detr-with-box-refine",
            163.9,
        ),
        NamedModel(
            "deformable-detr-with-box-refine-two-stage",
            configs.deformable_detr_with_box_refine_two_stage,
            "SenseTime/deformable-detr-with-box-refine-two-stage",
            165.2,
        ),
        NamedModel("detr", configs.detr, "facebook/detr-resnet-50", 81.2),
        NamedModel("detr-dc5", configs.detr_dc5, "facebook/detr-resnet-50-dc5", 173.2),
        NamedModel("faster-rcnn", configs.faster_rcnn, TORCHVISION, 177.6),
        NamedModel("faster-rcnn-v2", configs.faster_rcnn_v2, TORCHVISION, 334.9),
        NamedModel("shapes-tiny", configs.shapes_tiny, str(PACKAGED), 2.9),
    )
}


# Those that `create_model` makes: DETR and Deformable DETR.
SET_MODELS = [
    name for name, named in MODELS.items() if not isinstance(named.config(), FasterRcnnConfig)
]


def set_config(name: str) -> SetConfig:
    """The configuration of a model of SET_MODELS. Raises UnknownName for other names."""
    config = named_model(name).config()
    if isinstance(config, FasterRcnnConfig):
        raise UnknownName(
            f"{name} is torchvision's, which `label` runs: train and time it with torchvision, or "
            "choose another --model"
        )
    return config


def named_model(name: str) -> NamedModel:
    """The model with this name. Raises UnknownName, which lists the known names."""
    if name not in MODELS:
        near = _nearest_name(name)
        hint = f"did you mean {near}? Else " if near else ""
        raise UnknownName(f"unknown model {name!r}: {hint}choose one of {', '.join(MODELS)}")
    return MODELS[name]


def _nearest_name(name: str) -> str | None:
    """The model whose name resembles `name`, which may be a hub id. None if none does."""
    given = name.rpartition("/")[2].lower().replace("_", "-").replace(" ", "-")
    return next(iter(get_close_matches(given, MODELS, n=1)), None)


def weights_of(model: str, weights: str | None = None) -> str:
    """Where weights come from: RANDOM, a path, a URL or a hub id.

    Args:
        model: the name of the model that they are for.
        weights: None for the own ones of the model; the name of a model for those of that model;
            "packaged" for those that come with the package; else what it says. A file of such a
            name goes first.

    Raises UnknownName if there is no such model, and CheckpointError if `weights` names a model of
    another kind.
    """
    own = named_model(model)
    if not weights:
        return _own_weights(own)
    name, marker, digest = weights.partition("#sha256=")
    if Path(name).is_file():
        return weights
    if name == PACKAGED_NAME:
        name = next(named.name for named in MODELS.values() if named.weights == str(PACKAGED))
    if name not in MODELS:
        return weights
    if MODELS[name].config().kind != own.config().kind:
        raise CheckpointError(
            f"weights {weights} are those of the model {name}, which fit no {model}: give --model "
            f"{name}, or other weights"
        )
    return _own_weights(MODELS[name]) + marker + digest


def _own_weights(named: NamedModel) -> str:
    if named.weights != TORCHVISION:
        return named.weights
    from model.faster_rcnn import own_weights  # torchvision takes a second, and few need it

    config = named.config()
    assert isinstance(config, FasterRcnnConfig)
    return own_weights(config)


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
        labels: other class names, for training. The heads for them start with new weights.
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
            load_state(net, state, weights or name)
        if labels is not None and tuple(labels) != config.labels:
            net.replace_heads(tuple(labels))
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


def deformable_config(name: str) -> DeformableDetrConfig:
    """The configuration of a named model, which is a Deformable DETR."""
    config = named_model(name).config()
    assert isinstance(config, DeformableDetrConfig), f"{name} is no Deformable DETR"
    return config


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
