"""The named models, and where their weights are."""

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from model import config as configs
from model.config import DeformableDetrConfig, FasterRcnnConfig, ModelConfig, SetConfig
from model.errors import CheckpointError, UnknownName
from model.weights import find_weights

FROM_HUB, FROM_PYTHON = "hf:", "python:"  # begin the names of detectors that are none of MODELS
PACKAGED = Path(__file__).parent / "shapes_tiny.safetensors"
RANDOM = "random"
PACKAGED_NAME = "packaged"
TORCHVISION = "torchvision"  # the checkpoint that torchvision publishes for the model
WEIGHTS = "DETR_BATCH_WEIGHTS"  # names a folder of weights, for machines without a network
SUFFIXES = (".safetensors", ".pth", ".bin")
APACHE, BSD = "Apache-2.0", "BSD-3-Clause"
_SENSETIME = "SenseTime/deformable-detr"


@dataclass(frozen=True)
class NamedModel:
    """A model that users select by name.

    `weights` names the model's own weights: a hub id, a packaged file or TORCHVISION. `gmacs` is
    the number of multiply-adds, in billions, of its convolutions and matrix products on an image of
    640 x 480, as torch counts them. `ap` is the published AP on COCO val2017.
    """

    name: str
    config: Callable[[], ModelConfig]
    weights: str
    gmacs: float
    ap: float | None
    licence: str  # of the weights

    @property
    def source(self) -> str:
        """Where the weights come from, in a word."""
        return PACKAGED_NAME if self.weights == str(PACKAGED) else self.weights


MODELS = {
    named.name: named
    for named in (
        NamedModel(
            "deformable-detr", configs.deformable_detr, f"{_SENSETIME}", 163.7, 44.5, APACHE
        ),
        NamedModel(
            "deformable-detr-single-scale",
            configs.deformable_detr_single_scale,
            f"{_SENSETIME}-single-scale",
            76.1,
            39.4,
            APACHE,
        ),
        NamedModel(
            "deformable-detr-single-scale-dc5",
            configs.deformable_detr_single_scale_dc5,
            f"{_SENSETIME}-single-scale-dc5",
            124.7,
            41.5,
            APACHE,
        ),
        NamedModel(
            "deformable-detr-with-box-refine",
            configs.deformable_detr_with_box_refine,
            f"{_SENSETIME}-with-box-refine",
            163.9,
            46.2,
            APACHE,
        ),
        NamedModel(
            "deformable-detr-with-box-refine-two-stage",
            configs.deformable_detr_with_box_refine_two_stage,
            f"{_SENSETIME}-with-box-refine-two-stage",
            165.2,
            46.9,
            APACHE,
        ),
        NamedModel("detr", configs.detr, "facebook/detr-resnet-50", 81.2, 42.0, APACHE),
        NamedModel(
            "detr-dc5", configs.detr_dc5, "facebook/detr-resnet-50-dc5", 173.2, 43.3, APACHE
        ),
        NamedModel("faster-rcnn", configs.faster_rcnn, TORCHVISION, 177.6, 37.0, BSD),
        NamedModel("faster-rcnn-v2", configs.faster_rcnn_v2, TORCHVISION, 334.9, 46.7, BSD),
        NamedModel("shapes-tiny", configs.shapes_tiny, str(PACKAGED), 2.9, None, APACHE),
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


def is_ours(model: str) -> bool:
    """Whether the model of a run is a detector of detectors.py."""
    return model in MODELS or model.startswith((FROM_HUB, FROM_PYTHON))


def refuse_unknown(model: str) -> None:
    """Raise UnknownName for a name that is none of a detector. Nothing is loaded."""
    if not model.startswith((FROM_HUB, FROM_PYTHON)):
        named_model(model)


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
    """The place of a model's own weights; the folder of WEIGHTS goes first."""
    if (file := file_in_folder(named.name)) is not None:
        return file
    if named.weights != TORCHVISION:
        return named.weights
    from model.faster_rcnn import own_weights  # torchvision takes a second, and few need it

    config = named.config()
    assert isinstance(config, FasterRcnnConfig)
    return own_weights(config)


def deformable_config(name: str) -> DeformableDetrConfig:
    """The configuration of a named model, which is a Deformable DETR."""
    config = named_model(name).config()
    assert isinstance(config, DeformableDetrConfig), f"{name} is no Deformable DETR"
    return config


def weights_folder() -> Path | None:
    """The folder of weights that the variable WEIGHTS names; None without it.

    CheckpointError if it is no folder.
    """
    place = os.environ.get(WEIGHTS)
    if not place:
        return None
    if not Path(place).is_dir():
        raise CheckpointError(f"{WEIGHTS}={place} is no folder: make it, or unset the variable")
    return Path(place)


def file_in_folder(model: str) -> str | None:
    """The weights of a model in the folder of WEIGHTS; None if they are not there.

    They are called by the name of the model, such as `detr.safetensors`.
    """
    folder = weights_folder()
    files = [] if folder is None else [folder / f"{model}{suffix}" for suffix in SUFFIXES]
    return next((str(file) for file in files if file.is_file()), None)


def place_for_workers(model: str, weights: str | None) -> str | None:
    """`weights` as workers shall find them: a file in the folder of WEIGHTS by its whole name."""
    place, folder = weights_of(model, weights), weights_folder()
    return place if folder is not None and Path(place).parent == folder else weights


def fetch(model: str) -> Path:
    """Fetch the weights of a named model, into the folder of WEIGHTS or else into a cache.

    Raises UnknownName, CheckpointError or OSError.
    """
    named = named_model(model)
    path = find_weights(weights_of(model))
    folder = weights_folder()
    if folder is None or named.weights == str(PACKAGED) or path.parent == folder:
        return path
    target = folder / f"{model}{path.suffix}"
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        shutil.copyfile(path, unfinished)
        return unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
