"""The named models, and `create_model`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model import config as configs
from model.checkpoint import State, load_state, read_weights
from model.config import DeformableDetrConfig
from model.deformable_detr import DeformableDetr, Padding
from model.errors import UnknownName
from model.inference import prepare_for_inference
from model.ops.undocumented import multiplies_bf16
from model.weights import find_weights

PACKAGED = Path(__file__).parent / "shapes_tiny.safetensors"
RANDOM = "random"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


@dataclass(frozen=True)
class NamedModel:
    """A model that users call by name.

    `weights` are its own: a hub id or a packaged file. `gmacs` are the billions of multiply-adds of
    its convolutions and matrix products on a picture of 640 x 480, as torch counts them.
    """

    name: str
    config: Callable[[], DeformableDetrConfig]
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
            167.9,
        ),
        NamedModel("shapes-tiny", configs.shapes_tiny, str(PACKAGED), 3.0),
    )
}


def named_model(name: str) -> NamedModel:
    """The model of that name; UnknownName with the names there are."""
    if name not in MODELS:
        raise UnknownName(f"unknown model {name!r}: choose one of {', '.join(MODELS)}")
    return MODELS[name]


def resolved_precision(precision: str, device: str) -> str:
    """One of DTYPES.

    "auto" is bf16 where the hardware multiplies it (GPUs from compute capability 8.0, CPUs with
    AVX512-BF16 or AMX), else fp32. UnknownName for another.
    """
    if precision not in PRECISIONS:
        raise UnknownName(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        if torch.device(device).type == "cuda":
            capable = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            capable = multiplies_bf16()
        return "bf16" if capable else "fp32"
    return precision


def create_model(
    name: str,
    weights: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    padding: Padding = "published",
    labels: Sequence[str] | None = None,
    seed: int = 0,
    training: bool = False,
) -> DeformableDetr:
    """A detector ready to run, in evaluation mode.

    Args:
        name: one of `MODELS`.
        weights: None for the model's own; "random" for seeded random ones; else a path, any fsspec
            URL (`#sha256=<hex>` behind it is checked) or a hub id.
        device: "cpu", "cuda", "cuda:1", ...
        precision: "fp32", "bf16", "fp16", or "auto" (see `resolved_precision`).
        padding: "published" (the original's arithmetic) or "invariant" (a padded picture gives
            what it gives alone).
        labels: other class names, for training: their heads start anew.
        seed: of random weights.
        training: leave every parameter as checkpoints have it, fp32, to be trained or saved. The
            default is prepared for inference: the same results, faster (model/inference.py).

    Raises:
        ValueError: an unknown name or precision, weights that cannot be had or do not fit.
    """
    config = named_model(name).config()
    dtype = DTYPES[resolved_precision(precision, device)]
    state: State | None = None
    metadata: dict[str, str] = {}
    if weights != RANDOM:
        path = find_weights(weights or named_model(name).weights)
        state, metadata = read_weights(path)
    if "labels" in metadata:
        config = replace(config, labels=tuple(json.loads(metadata["labels"])))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DeformableDetr(config, padding)
        if state is not None:
            load_state(net, state, weights or name)
        if labels is not None and tuple(labels) != config.labels:
            net.replace_heads(tuple(labels))
    net = net.eval().to(device)
    if training:
        net.autocast_dtype = None if dtype == torch.float32 else dtype
        return net
    return prepare_for_inference(net, dtype)
