"""Image in, boxes out: a detector in this process, without Ray.

Images are decoded and resized as `label` does it, but in this process: use `label` for files that
strangers made.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from model.description import Load
from model.detector import BatchDetector, Size
from model.detectors import describe
from model.detectors import load as load_detector
from model.errors import CheckpointUnavailable
from model.image_detector import NotFinite
from model.named import RANDOM
from model.preprocess import form_batch
from model.resample import resize_pixels
from model.resize import AS_DISPLAYED
from model.zoo import offered_precision, resolved_precision
from pipeline.schema import OK
from pipeline.stages.decode import decode_row
from pipeline.stages.pixels import rgb_pixels
from pipeline.stages.tiling import MAX_PIXELS
from pipeline.storage.errors import InputError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Picture: TypeAlias = str | os.PathLike[str] | Image.Image | Pixels
TOP = 100  # detections of an image
LINE, TEXT = 3, 14  # pixels
COLOURS = ("#ffb000", "#4dd2ff", "#7ee081", "#ff8fa3", "#c8a2ff", "#ffe14d", "#5ff0d8", "#ff9d5c")


@dataclass(frozen=True)
class Found:
    """The detections of one image, best first."""

    labels: list[str]  # class names
    scores: list[float]  # from the threshold to 1
    boxes: list[list[float]]  # x_min, y_min, x_max, y_max in pixels of the upright image
    image: Pixels = field(repr=False)  # (H, W, 3) uint8 RGB, upright

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self) -> Image.Image:
        """The image with its boxes and their names."""
        image = Image.fromarray(self.image)
        pen = ImageDraw.Draw(image)
        font = ImageFont.load_default(TEXT)
        found = zip(self.labels, self.scores, self.boxes, strict=True)
        for label, score, (left, top, right, bottom) in reversed(list(found)):  # the best on top
            colour = COLOURS[sum(label.encode()) % len(COLOURS)]
            pen.rectangle((left, top, right, bottom), outline=colour, width=LINE)
            text = f"{label} {score:.2f}"
            place = left, max(0.0, top - TEXT - LINE)
            pen.rectangle(pen.textbbox(place, text, font), fill=colour, outline=colour, width=LINE)
            pen.text(place, text, "black", font)
        return image


class LocalDetector:
    """A detector of `load`. Call it with an image or with a list of images."""

    def __init__(self, detector: BatchDetector, threshold: float):
        self.detector, self.threshold = detector, threshold

    @property
    def labels(self) -> list[str]:
        """The class names by number; "" is a number that stands for no class."""
        return list(self.detector.labels)

    @overload
    def __call__(self, images: Picture) -> Found: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Sequence[Picture]) -> list[Found]: ...
    def __call__(self, images: Picture | Sequence[Picture]) -> Found | list[Found]:
        """Detect in images: paths of files, PIL images, or arrays (H, W, 3) uint8 RGB.

        Raises InputError for what is no image, and RuntimeError or MemoryError if the device fails.
        """
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            return self([images])[0]
        if isinstance(images, bytes) or not isinstance(images, Iterable):
            raise _no_image(images)
        pixels = [_pixels_of(image) for image in images]
        targets = [self.detector.resize.target_size(*one.shape[:2]) for one in pixels]
        found: dict[int, Found] = {}
        for numbers in self._batches(targets):
            batch = [pixels[number] for number in numbers]
            for number, one in zip(
                numbers, self._detect(batch, [targets[n] for n in numbers]), strict=True
            ):
                found[number] = one
        return [found[number] for number in range(len(pixels))]

    def _batches(self, targets: Sequence[Size]) -> Iterator[list[int]]:
        """The numbers of images that are computed together: of one canvas, up to `count`."""
        canvases: dict[Size, list[int]] = {}
        for number, target in enumerate(targets):
            canvases.setdefault(self.detector.canvas(target), []).append(number)
        count = self.detector.count
        for numbers in canvases.values():
            yield from (numbers[start : start + count] for start in range(0, len(numbers), count))

    def _detect(self, images: Sequence[Pixels], targets: Sequence[Size]) -> Iterator[Found]:
        resized = [
            resize_pixels(torch.from_numpy(image), target)
            for image, target in zip(images, targets, strict=True)
        ]
        sizes = torch.ones(self.detector.count, 2, dtype=torch.int64)
        sizes[: len(images)] = torch.tensor([image.shape[:2] for image in images])
        inputs = form_batch(resized, self.detector)
        result = self.detector.submit(inputs[0], inputs[1], sizes, inputs[2]).result()
        for number, image in enumerate(images):
            yield self._found(
                image, result.scores[number], result.labels[number], result.boxes[number]
            )

    def _found(self, image: Pixels, scores: Tensor, labels: Tensor, boxes: Tensor) -> Found:
        if not (scores.isfinite().all() and boxes.isfinite().all()):
            raise NotFinite
        names = [self.detector.labels[label] for label in labels.tolist()]
        kept = [
            number
            for number, (name, score) in enumerate(zip(names, scores.tolist(), strict=True))
            if name and score >= self.threshold
        ]
        return Found(
            [names[number] for number in kept], scores[kept].tolist(), boxes[kept].tolist(), image
        )


def load(
    model: str = "deformable-detr",
    weights: str | None = None,
    device: str | None = None,
    precision: str = "auto",
    threshold: float = 0.3,
) -> LocalDetector:
    """Load a detector.

    Args:
        model: as `detr-batch label --model`: a name of `detr-batch models`, `hf:FOLDER_OR_ID` or
            `python:package.module:function`.
        weights: as `--weights`; None: the model's own.
        device: "cpu", "cuda", "cuda:1", ...; None: a GPU if there is one.
        precision: as `--precision`.
        threshold: the least score of a detection; 0 keeps the best 100.

    On a CPU it computes with all cores, and `label` with one for each detector, so scores may
    differ in the third digit in bf16. Raises ValueError for unknown names, and for weights that
    cannot be read or do not fit.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        described = describe(model, weights)
    except CheckpointUnavailable as error:  # what the hub's client raised before tells no more
        raise CheckpointUnavailable(str(error)) from None
    precision = offered_precision(model, described.precisions, precision)
    sha256 = None if described.weights == RANDOM else described.weights
    place = described.place or weights
    wanted = Load(place, sha256, device, resolved_precision(precision, device), None, TOP)
    return LocalDetector(load_detector(model, wanted), threshold)


def _no_image(given: object) -> InputError:
    kind = type(given).__name__
    return InputError(f"{kind} is no image: give the path of a file, a PIL image or an array")


def _pixels_of(image: Picture) -> Pixels:
    """An image as (H, W, 3) uint8 RGB, upright."""
    if isinstance(image, Image.Image):
        try:
            if 0 in image.size:
                raise ValueError(f"it has {image.size[0]} x {image.size[1]} pixels")
            return rgb_pixels(ImageOps.exif_transpose(image), b"")
        except Exception as error:  # decoders raise many types of errors
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"the image cannot be read: {reason}") from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"an image must be (H, W, 3) uint8, and is {image.shape} {image.dtype}"
            )
        whole = np.ascontiguousarray(image)
        return whole if whole.flags.writeable else whole.copy()  # torch takes no others
    if not isinstance(image, str | os.PathLike):
        raise _no_image(image)
    try:
        encoded = Path(image).read_bytes()
    except OSError as error:
        raise InputError(f"{image} cannot be read: {error.strerror}") from error
    row = decode_row(encoded, AS_DISPLAYED, MAX_PIXELS)
    if row["status"] != OK:
        raise InputError(f"{image} is no image that can be read: {row['error']}")
    return np.frombuffer(row["pixels"], np.uint8).reshape(row["rows"], row["columns"], 3)
