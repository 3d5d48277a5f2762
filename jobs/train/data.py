"""Training data: samples, and rendered scenes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from jobs.coco import records as coco
from jobs.coco.records import Annotation, Annotations
from jobs.demo.scenes import SHAPES, Scene, render_scene, scene
from model.matching import Target
from model.resize import ResizeRule

Array = np.ndarray[Any, np.dtype[Any]]
HELD_OUT_SEED = 1_000_000  # the seed of scenes that are never trained on
MOST_OBJECTS = 20  # crowded images teach more in the same time
ASPECTS = (1.0, 1.25, 1.6, 2.1, 2.8)  # longer side divided by shorter side of the rendered scenes
SCENES = 400  # for each aspect; rendering costs more than mirroring and recolouring a scene
SCALES = (0.7, 1.6)  # rendered size over the model's input size, as for images of 200 to 1,200 px
# Share of the training that is done, and share of the model's input size at that time: training
# starts on small images, which are quick (Tan & Le 2021).
SIZES = ((0.55, 0.8), (0.55, 0.85))
# Number of consecutive batches of one scale. CPUs compile their convolutions for each new size,
# which costs as much as a fifth of a step, and cache those of about a dozen sizes.
BATCHES_OF_ONE_SCALE = 50


@dataclass(frozen=True)
class Sample:
    """One resized image with its truth."""

    image: Tensor  # (h, w, 3) uint8
    target: Target
    image_id: str
    size: tuple[int, int]  # height and width before resizing


def to_sample(
    picture: Image.Image,
    boxes: Array,
    labels: Array,
    image_id: str,
    size: tuple[int, int],
) -> Sample:
    """Resize an image to `size` (rows, columns); `boxes` (N, 4) are corners in its own pixels."""
    width, height = picture.size
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    corners = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners = corners / torch.tensor([width, height, width, height])
    centred = torch.cat(
        ((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), dim=1
    )
    target = Target(torch.as_tensor(labels, dtype=torch.int64), centred)
    return Sample(torch.from_numpy(np.array(resized)), target, image_id, (height, width))


class ScenesForTraining(Dataset[Sample]):
    """Rendered scenes, mirrored, turned and recoloured at random, which changes no shape's class.

    The images of one batch have one size, so that nothing is padded. Image `index` depends on the
    seed alone. Scenes are kept in memory: about 1 GB for the packaged model's input size.
    """

    labels = SHAPES

    def __init__(self, seed: int, length: int, batch_size: int, rule: ResizeRule):
        self.seed, self.length, self.batch_size, self.rule = seed, length, batch_size, rule
        self._drawn: dict[tuple[int, int], Scene] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        aspect, rows, columns = self._shape(index // self.batch_size)
        rng = np.random.default_rng([self.seed, 1, index])
        drawn = self._scene(aspect, int(rng.integers(SCENES)))
        pixels, boxes = drawn.pixels, drawn.boxes
        if rows > columns:
            pixels, boxes = pixels.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
        if rng.random() < 0.5:
            pixels, boxes = pixels[:, ::-1], mirrored(boxes, 0, pixels.shape[1])
        if rng.random() < 0.5:
            pixels, boxes = pixels[::-1], mirrored(boxes, 1, pixels.shape[0])
        if rng.random() < 0.5:
            pixels = 255 - pixels
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., rng.permutation(3)]))
        return to_sample(picture, boxes, drawn.labels, str(index), (rows, columns))

    def _shape(self, batch: int) -> tuple[int, int, int]:
        """Return the index in ASPECTS of a batch, and the rows and columns of its images."""
        of_scale = np.random.default_rng([self.seed, 3, batch // BATCHES_OF_ONE_SCALE])
        share = np.interp(batch * self.batch_size / self.length, *SIZES) * of_scale.uniform(
            0.8, 1.2
        )
        rng = np.random.default_rng([self.seed, batch])
        aspect = int(rng.integers(len(ASPECTS)))
        shorter = self.rule.shorter * share
        rule = ResizeRule(round(shorter), self.rule.longest, self.rule.multiple)
        short, long = rule.target_size(round(shorter), round(shorter * ASPECTS[aspect]))
        return (aspect, short, long) if rng.random() < 0.5 else (aspect, long, short)

    def _scene(self, aspect: int, number: int) -> Scene:
        """Return the landscape scene of this number; it is rendered at the first call."""
        if (aspect, number) not in self._drawn:
            rng = np.random.default_rng([self.seed, 2, aspect, number])
            shorter = self.rule.shorter * math.exp(rng.uniform(*np.log(SCALES)))
            size = round(shorter * ASPECTS[aspect]), round(shorter)
            self._drawn[aspect, number] = render_scene(rng, *size, MOST_OBJECTS)
        return self._drawn[aspect, number]


def mirrored(boxes: Array, axis: int, extent: int) -> Array:
    """Mirror corners (N, 4) along x (axis 0) or y (axis 1) in an image of `extent` pixels there."""
    mirrored = boxes.copy()
    mirrored[:, [axis, axis + 2]] = extent - boxes[:, [axis + 2, axis]]
    return mirrored


class HeldOutScenes(Dataset[Sample]):
    """Scenes of 200 to 1,200 px and any aspect, from a seed that training never uses."""

    labels = SHAPES

    def __init__(self, length: int, rule: ResizeRule):
        self.rule = rule
        self.scenes: list[Scene] = [scene(HELD_OUT_SEED, index) for index in range(length)]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        drawn = self.scenes[index]
        picture = Image.fromarray(drawn.pixels)
        size = self.rule.target_size(picture.height, picture.width)
        return to_sample(picture, drawn.boxes, drawn.labels, str(index), size)

    def truth(self) -> Annotations:
        """Return the boxes of the scenes."""
        images: dict[str, coco.Image] = {}
        annotations: list[Annotation] = []
        for index, drawn in enumerate(self.scenes):
            height, width, _ = drawn.pixels.shape
            images[str(index)] = coco.Image(str(index), None, width, height)
            for box, label in zip(drawn.boxes.tolist(), drawn.labels.tolist(), strict=True):
                x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
                annotations.append(Annotation(str(index), label, (x, y, w, h), w * h))
        classes = {label_id: name for label_id, name in enumerate(SHAPES) if name}
        return Annotations(images, classes, annotations)
