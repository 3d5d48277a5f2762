"""A user's own detector, which a function of a Python module makes."""

import hashlib
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from model.description import Description, Load
from model.errors import CheckpointError, UnknownName
from model.image_detector import ImageDetector, weight_bytes
from model.named import FROM_PYTHON, RANDOM
from model.resize import AS_DISPLAYED, ResizeRule
from model.weights import file_sha256, find_weights

PRECISIONS = ("fp32",)  # its function knows best


def describe(model: str, weights: str | None) -> Description:
    """Describe `python:package.module:function`. Raises as `model.detectors.describe`."""
    digest, path = _digest(model, weights)
    detector = _made(model, "cpu", path)
    labels, resize = tuple(detector.labels), getattr(detector, "resize", AS_DISPLAYED)
    identity = {"library": "python", "model": model, "labels": labels, "resize": repr(resize)}
    size = _weight_bytes(detector)
    return Description(labels, resize, PRECISIONS, identity, digest, True, weight_bytes=size)


def load(model: str, wanted: Load) -> ImageDetector:
    """Load `python:package.module:function`. Raises as `model.detectors.load`."""
    _, path = _digest(model, wanted.weights)
    detector = _made(model, wanted.device, path)
    wanted.check(model, _digest(model, wanted.weights)[0])
    return detector


def _made(model: str, device: str, weights: Path | None) -> ImageDetector:
    """What the function returns for a device and, if they are given, a file of weights."""
    _, function = module_and_name(model)
    make = getattr(_module(model), function, None)
    if not callable(make):
        raise UnknownName(f"{model}: its module has no function {function!r}")
    options = {} if weights is None else {"weights": weights}
    try:
        detector: Any = make(device, **options)
        labels = getattr(detector, "labels", ())
        names = () if isinstance(labels, str) else tuple(labels)
    except (Exception, SystemExit) as error:  # a user's code raises anything
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{model} failed: {type(error).__name__}: {reason}") from error
    if lacking := [name for name in ("labels", "detect") if not hasattr(detector, name)]:
        raise CheckpointError(
            f"{model} must return a detector, and what it returns lacks {' and '.join(lacking)}: "
            "see `ImageDetector` in model/image_detector.py"
        )
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{model}: `labels` must be a list of class names")
    if not isinstance(getattr(detector, "resize", AS_DISPLAYED), ResizeRule):
        raise CheckpointError(f"{model}: `resize` must be a ResizeRule of model/resize.py")
    made: ImageDetector = detector
    return made


def _weight_bytes(detector: ImageDetector) -> int:
    """The bytes of the networks of torch that a detector has as its attributes; 0 of others."""
    networks = [detector, *getattr(detector, "__dict__", {}).values()]
    return sum(weight_bytes(one) for one in networks if isinstance(one, nn.Module))


def module_and_name(model: str) -> tuple[str, str]:
    """The module and the function that a model names. UnknownName for another form."""
    module, separator, function = model.removeprefix(FROM_PYTHON).partition(":")
    if not module or not separator or not function.isidentifier():
        raise UnknownName(f"{model}: give {FROM_PYTHON}package.module:function")
    return module, function


def _module(model: str) -> ModuleType:
    """The module, which may lie in the folder where the command runs."""
    name, _ = module_and_name(model)
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise CheckpointError(f"{model} needs {error.name}, which is not installed") from error
        raise UnknownName(
            f"{model}: there is no module {name!r}: run the command in its folder, or install it"
        ) from error
    except (Exception, SystemExit) as error:  # a user's code raises anything
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{model}: {type(error).__name__}: {reason}") from error


def _digest(model: str, weights: str | None) -> tuple[str, Path | None]:
    """SHA-256 of the module's source and of the weights, and the local file of these."""
    module = _module(model)
    source = getattr(module, "__file__", None)  # None for modules that are built in, and folders
    parts = [file_sha256(Path(source))] if source else [module.__name__]
    if weights == RANDOM:
        raise UnknownName(f"--weights random is not for {model}, whose function chooses its own")
    path = find_weights(weights) if weights else None
    if path is not None:
        parts.append(file_sha256(path))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest(), path
