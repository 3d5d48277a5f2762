"""Every detector that the pipeline can run: those of the project, of transformers, and of users.

A command describes a detector before anything runs, and its workers load it.
"""

from dataclasses import asdict, replace

from model import from_hub, from_python
from model.config import FasterRcnnConfig
from model.description import Description, Load
from model.detector import BatchDetector
from model.image_detector import OneByOne
from model.named import (
    FROM_HUB,
    FROM_PYTHON,
    RANDOM,
    named_model,
    place_for_workers,
    weights_of,
)
from model.predictor import Predictor
from model.weights import file_sha256, find_weights
from model.zoo import create_model


def settled(model: str) -> str:
    """The name of a detector that means the same in every folder of this machine."""
    return from_hub.settled(model) if model.startswith(FROM_HUB) else model


def describe(model: str, weights: str | None) -> Description:
    """Describe a detector, which is built for that on a CPU: so wrong weights are refused at once.

    `model` is a name of `detr-batch models`, `hf:FOLDER_OR_ID` or `python:package.module:function`.

    Raises UnknownName for an unknown one, and CheckpointError if its weights cannot be read, or do
    not fit.
    """
    if model.startswith(FROM_HUB):
        return from_hub.describe(model, weights)
    if model.startswith(FROM_PYTHON):
        return from_python.describe(model, weights)
    place = weights_of(model, weights)
    path = None if place == RANDOM else find_weights(place)
    sha256 = None if path is None else file_sha256(path)
    config = named_model(model).config()
    if isinstance(config, FasterRcnnConfig):
        from model import faster_rcnn  # torchvision takes a second, and few need it

        labels = faster_rcnn.create_faster_rcnn(config, path, sha256=sha256).labels
        config = replace(config, labels=labels)
    else:
        config = create_model(model, weights, training=True, sha256=sha256).config
    return Description(
        config.labels,
        config.resize,
        config.precisions,
        asdict(config),
        sha256 or RANDOM,
        isinstance(config, FasterRcnnConfig),
        place_for_workers(model, weights),
    )


def load(model: str, wanted: Load) -> BatchDetector:
    """Load a detector on its device. Raises as `describe`, and CheckpointError for other weights.

    Other weights are those whose digest is not the one that the command found.
    """
    if model.startswith(FROM_HUB):
        return OneByOne(from_hub.load(model, wanted), wanted.top, model)
    if model.startswith(FROM_PYTHON):
        return OneByOne(from_python.load(model, wanted), wanted.top, model)
    config = named_model(model).config()
    if isinstance(config, FasterRcnnConfig):
        from model import faster_rcnn

        place = weights_of(model, wanted.weights)
        path = None if place == RANDOM else find_weights(place)
        detector = faster_rcnn.create_faster_rcnn(config, path, wanted.device, wanted.sha256)
        return OneByOne(detector, wanted.top, model)
    net = create_model(
        model,
        wanted.weights,
        wanted.device,
        wanted.precision,
        padding="invariant",
        sha256=wanted.sha256,
    )
    return Predictor(net, wanted.device, wanted.top, wanted.count)
