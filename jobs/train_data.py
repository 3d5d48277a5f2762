"""What `train` learns from: rendered scenes, or a dataset in COCO's format."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from jobs.scenes import SHAPES, Scene, render_scene, scene
from model.matching import Target
from model.resize import ResizeRule

Array = np.ndarray[Any, np.dtype[Any]]
HELD_OUT_SEED = 1_000_000  # the seed of scenes that are never trained on
MOST_OBJECTS = 20  # crowded pictures teach more in the same time
# Share of the training done, and of the model's input size at that time: training starts on small
# pictures, which are quick (Tan & Le 2021).
SIZES = ((0.0, 0.7), (0.6, 1.0))
SCALES = (0.7, 1.8)  # rendered size over the model's input size, as in pictures of 200 to 1,200 px


@dataclass(frozen=True)
class Sample:
    """One picture, resized, with its truth."""

    image: Tensor  # (h, w, 3) uint8
    target: Target
    image_id: int
    size: tuple[int, int]  # height and width before resizing


def to_sample(
    picture: Image.Image,
    boxes: Array,
    labels: Array,
    image_id: int,
    size: tuple[int, int],
) -> Sample:
    """Resize a picture to `size` (rows, columns); `boxes` (N, 4) are corners in its own pixels."""
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
    """Endless rendered scenes; those of one batch share a size, so that nothing is padded."""

    labels = SHAPES

    def __init__(self, seed: int, length: int, batch_size: int, rule: ResizeRule):
        self.seed, self.length, self.batch_size, self.rule = seed, length, batch_size, rule

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        batch = index // self.batch_size
        of_batch = np.random.default_rng([self.seed, batch])
        share = np.interp(batch * self.batch_size / self.length, *SIZES) * of_batch.uniform(
            0.8, 1.2
        )
        shorter = int(self.rule.shorter * share)
        longer = int(min(shorter * math.exp(of_batch.uniform(0, math.log(2.2))), self.rule.longest))
        columns, rows = (shorter, longer) if of_batch.random() < 0.5 else (longer, shorter)
        rng = np.random.default_rng([self.seed, 1, index])
        scale = math.exp(rng.uniform(math.log(SCALES[0]), math.log(SCALES[1])))
        size = round(columns * scale), round(rows * scale)
        drawn = render_scene(rng, *size, MOST_OBJECTS)
        picture = Image.fromarray(drawn.pixels)
        return to_sample(picture, drawn.boxes, drawn.labels, index, (rows, columns))


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
        return to_sample(picture, drawn.boxes, drawn.labels, index, size)

    def truth(self) -> dict[str, Any]:
        """The scenes as a COCO annotation document."""
        annotations: list[dict[str, Any]] = []
        for image_id, drawn in enumerate(self.scenes):
            for box, label in zip(drawn.boxes.tolist(), drawn.labels.tolist(), strict=True):
                width, height = box[2] - box[0], box[3] - box[1]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": label,
                        "bbox": [box[0], box[1], width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
        images = [
            {"id": i, "height": s.pixels.shape[0], "width": s.pixels.shape[1]}
            for i, s in enumerate(self.scenes)
        ]
        categories = [{"id": i, "name": name} for i, name in enumerate(SHAPES) if name]
        return {"images": images, "annotations": annotations, "categories": categories}


class CocoDataset(Dataset[Sample]):
    """A folder of pictures beside an annotation file in COCO's format.

    The label of a detection is its category id, as in the published checkpoints; `labels` has an
    empty name for ids that are not used. With `flip`, half of the pictures are mirrored.
    """

    def __init__(self, folder: Path, annotations: Path, rule: ResizeRule, flip: bool):
        self.folder, self.rule, self.flip = folder, rule, flip
        self.document = json.loads(annotations.read_text())
        names = {category["id"]: category["name"] for category in self.document["categories"]}
        self.labels = tuple(names.get(i, "") for i in range(max(names) + 1))
        self.images = self.document["images"]
        self.boxes: dict[int, list[dict[str, Any]]] = {}
        for annotation in self.document["annotations"]:
            if not annotation.get("iscrowd") and min(annotation["bbox"][2:]) > 0:
                self.boxes.setdefault(annotation["image_id"], []).append(annotation)

    def __len__(self) -> int:
        return len(self.images)

    def truth(self) -> dict[str, Any]:
        """The annotation document."""
        document: dict[str, Any] = self.document
        return document

    def __getitem__(self, index: int) -> Sample:
        entry = self.images[index]
        with Image.open(self.folder / entry["file_name"]) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
        found = self.boxes.get(entry["id"], [])
        boxes = np.array([a["bbox"] for a in found], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        if self.flip and torch.rand(()) < 0.5:
            picture = ImageOps.mirror(picture)
            boxes[:, [0, 2]] = picture.width - boxes[:, [2, 0]]
        labels = np.array([a["category_id"] for a in found], np.int64)
        size = self.rule.target_size(picture.height, picture.width)
        return to_sample(picture, boxes, labels, entry["id"], size)
