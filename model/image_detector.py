"""Detectors that get one image at a time: those of other libraries, and a user's own."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from model.detector import Detections, Size
from model.resize import AS_DISPLAYED, ResizeRule

OUTSIDE = 1.0  # pixels by which a box may lie outside its image before it counts as wrong

Found = tuple[Any, Any, Any]  # boxes (N, 4), scores (N,) and labels (N,), see `detect`


class ImageDetector(Protocol):
    """A detector with its weights on its device, that gets images one by one.

    It may have more: `resize`, the `ResizeRule` by which images are resized for it (without it they
    come as displayed).
    """

    @property
    def labels(self) -> Sequence[str]:
        """The class names by number; "" is a number that stands for no class."""

    def detect(self, image: npt.NDArray[np.uint8]) -> Found:
        """Detect in one image.

        `image` is (H, W, 3) uint8 RGB, upright. Returns arrays, tensors or lists of N detections in
        any order: boxes (N, 4) x_min, y_min, x_max, y_max in pixels of `image`; scores (N,) from 0
        to 1; labels (N,), numbers of classes.
        """


class NotFinite(RuntimeError):
    """A detector computed numbers that are not finite."""

    def __str__(self) -> str:
        return (
            "the model's output is not finite: its weights are damaged, or its precision is too "
            "narrow for them (try --precision fp32)"
        )


class ContractBroken(RuntimeError):
    """A detector returned something else than `ImageDetector.detect` says."""


@dataclass(frozen=True)
class Done:
    """Detections that are there already."""

    detections: Detections
    device_seconds: float | None = None

    def result(self) -> Detections:
        return self.detections


class OneByOne:
    """Runs an `ImageDetector`. It meets `BatchDetector`: a batch is one image at its own size."""

    count, ahead = 1, 0
    pads = pins = enlarges = False
    device, copies = torch.device("cpu"), None  # what an `ImageDetector` gets lies on the host

    def __init__(self, detector: ImageDetector, top: int, name: str):
        """`name` is what errors call the detector."""
        self.detector, self.top, self.name = detector, top, name
        self.labels = tuple(detector.labels)
        self.resize: ResizeRule = getattr(detector, "resize", AS_DISPLAYED)
        self._lock = threading.Lock()

    def canvas(self, size: Size) -> Size:
        """The image itself."""
        return size

    def submit(
        self, pixels: Tensor, valid: Tensor | None, sizes: Tensor, sources: Tensor | None = None
    ) -> Done:
        """Detect in one image (1, H, W, 3) uint8, see `BatchDetector.submit`.

        RuntimeError for any error of the detector, also if what it returns is no detections.
        """
        try:
            image = pixels[0].numpy()
            image.flags.writeable = False  # it is the memory of a table
            with self._lock:
                found = self.detector.detect(image)
            boxes, scores, labels = checked(found, pixels.shape[1:3], len(self.labels))
        except MemoryError:
            raise
        except ContractBroken as error:
            raise ContractBroken(f"{self.name}: {error}") from error
        except RuntimeError:  # of torch, which its types tell apart
            raise
        except BaseException as error:  # other people's code raises anything, SystemExit too
            is_main = threading.current_thread() is threading.main_thread()
            if isinstance(error, KeyboardInterrupt) and is_main:  # of the person at the terminal
                raise
            raise RuntimeError(f"{self.name}: {type(error).__name__}: {error}") from error
        best = np.argsort(-scores, kind="stable")[: self.top]
        scale = sizes[0].numpy() / pixels.shape[1:3]
        boxes = (boxes[best] * np.tile(scale[::-1], 2)).astype(np.float32)
        columns = scores[best], labels[best], boxes
        return Done(Detections(*(torch.from_numpy(column)[None] for column in columns)))

    def warm_up(self) -> bool:
        """Nothing is prepared in advance."""
        return False

    def give_memory_back(self) -> None:
        """Nothing is kept to save time."""


def weight_bytes(net: nn.Module) -> int:
    """The bytes of a network's parameters and buffers, as far as they exist already."""
    tensors = [*net.parameters(), *net.buffers()]
    return sum(tensor.nbytes for tensor in tensors if not is_lazy(tensor))


def checked(
    found: Found, size: Sequence[int], classes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The boxes, scores and labels that a detector returned for an image of this height and width.

    Boxes are clamped to the image. Raises ContractBroken if they are no detections.
    """
    try:
        boxes, scores, numbers = (
            np.asarray(part.detach().double().cpu() if isinstance(part, Tensor) else part)
            for part in found
        )
        boxes, scores = boxes.astype(np.float64), scores.astype(np.float32)
        labels = numbers.astype(np.int64) if len(numbers) else np.empty(0, np.int64)
        if (labels != numbers).any():
            raise ContractBroken("labels must be whole numbers")
    except (TypeError, ValueError) as error:
        raise ContractBroken(f"it must return boxes, scores and labels: {error}") from error
    if boxes.size == 0:
        boxes = boxes.reshape(-1, 4)
    if scores.ndim != 1 or boxes.shape != (len(scores), 4) or labels.shape != scores.shape:
        shapes = ", ".join(str(part.shape) for part in (boxes, scores, labels))
        raise ContractBroken(
            f"boxes, scores and labels must be (N, 4), (N,) and (N,), and are {shapes}"
        )
    height, width = size
    corners, far = boxes.reshape(-1, 2, 2), np.array([width, height]) + OUTSIDE
    for problem, is_wrong in {
        "a score that is not from 0 to 1": ~((scores >= 0) & (scores <= 1)),
        f"a label that is none of its {classes} classes": (labels < 0) | (labels >= classes),
        "a box with a number that is not finite": ~np.isfinite(boxes).all(1),
        "a box whose corners are in the wrong order": (corners[:, 0] > corners[:, 1]).any(1),
        "a box outside the image": ((corners < -OUTSIDE) | (corners > far)).any((1, 2)),
    }.items():
        if is_wrong.any():
            which = int(np.flatnonzero(is_wrong)[0])
            raise ContractBroken(
                f"it returned {problem}: box {boxes[which].tolist()}, score {scores[which]:g}, "
                f"label {labels[which]}, in an image of {height} x {width}"
            )
    inside = np.clip(corners, 0, np.array([width, height])).reshape(-1, 4)
    return inside, scores, labels
