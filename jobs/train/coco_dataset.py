"""A dataset in COCO's format, of which all that can be known before training is checked."""

import copy
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from PIL import ImageOps
from torch.utils.data import Dataset

from jobs.accounting.plurals import counted
from jobs.coco.reader import label_names, read_annotations
from jobs.coco.records import Annotation, Annotations, Image
from jobs.train.data import Array, Sample, mirrored, to_sample
from jobs.train.image_files import ImageFiles, Unreadable, find_image_files, reason_of
from model.resize import ResizeRule
from pipeline.stages.decode import decode_image
from pipeline.stages.prepare import MOST_PIXELS
from pipeline.storage.errors import InputError

# A model has an output for each number up to the highest id. With 5,000 of them a step of
# shapes-tiny takes 4 GB and 15 s on two cores (2026-11-27), with 91 of them 1 GB and 2 s.
MOST_LABELS = 5_000
# Of an image: each takes memory beside each query. 20,000 take 6 GB in a step of shapes-tiny, and
# datasets of crowds have some hundred. A model of 300 queries learns no more at a time.
MOST_BOXES = 2_000


@dataclass
class _Counts:
    """Odd things by what is said of them, each with the first."""

    numbers: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    first: dict[str, str] = field(default_factory=dict)

    def add(self, said: str, name: str) -> None:
        self.numbers[said] += 1
        self.first.setdefault(said, name)

    def lines(self) -> list[str]:
        return [f"{said}: {n}; the first is {self.first[said]}" for said, n in self.numbers.items()]


class CocoDataset(Dataset[Sample | Unreadable]):
    """A folder of images with an annotation file in COCO's format.

    The label of a detection is its category id, as in the published checkpoints; `labels` has an
    empty name for ids that are not used. With `flip`, half of the images are mirrored. `notes` say
    what is odd, and what becomes of it. Raises InputError for what cannot be trained on.
    """

    def __init__(self, folder: Path, annotations: Path, rule: ResizeRule, flip: bool):
        self.rule, self.flip = rule, flip
        self.annotations = read_annotations(str(annotations), needed=("file_name",))
        self.labels = label_names(self.annotations.classes, str(annotations))
        if len(self.labels) > MOST_LABELS:
            highest = max(self.annotations.classes)
            raise InputError(
                f"{annotations}: the category {self.annotations.classes[highest]!r} has the id "
                f"{highest}: a model has an output for each number up to the highest, so give ids "
                f"below {MOST_LABELS}"
            )
        if self.annotations.of_unlisted_categories.count:
            unlisted = self.annotations.of_unlisted_categories
            raise InputError(
                f"{annotations}: {unlisted.first} is of a category that the file does not list, so "
                f"it would be taken for background (one of {unlisted.count} such annotations): "
                "list the category, or take them out"
            )
        self.files = find_image_files(folder, self.annotations.images.values())
        self.images = [
            image for image in self.annotations.images.values() if image.id in self.files.found
        ]
        counts = _Counts()
        self.boxes = _usable_boxes(self.annotations, self.files, counts)
        for image_id, (boxes, _) in self.boxes.items():
            if len(boxes) > MOST_BOXES:
                raise InputError(
                    f"{annotations}: the image {image_id} has {len(boxes)} boxes, and {MOST_BOXES} "
                    "are allowed: take some out, or cut the image into several"
                )
        notes = [*_image_notes(folder, self.files, self.images), *_unlisted_notes(self.annotations)]
        self.notes = [*notes, *_category_notes(self.annotations), *counts.lines()]
        if not self.boxes:
            nothing = not self.annotations.annotations and not self.annotations.left_out
            why = [*counts.lines(), *notes, *(["Its list of annotations is empty"] * nothing)]
            odd = "".join(f". {line}" for line in why)
            raise InputError(f"{annotations} has no usable box in images of {folder}{odd}")

    def for_validation(self) -> "CocoDataset":
        """The same dataset, never mirrored."""
        same = copy.copy(self)
        same.flip = False
        return same

    def __len__(self) -> int:
        return len(self.images)

    def truth(self) -> Annotations:
        """Return the content of the annotation file."""
        return self.annotations

    def __getitem__(self, index: int) -> Sample | Unreadable:
        image_id = self.images[index].id
        path = self.files.found[image_id].path
        try:
            picture = Picture.fromarray(decode_image(path.read_bytes(), MOST_PIXELS))
        except MemoryError:
            raise
        except Exception as error:  # decoders raise many types of errors
            return Unreadable(image_id, path, reason_of(error))
        boxes, labels = self.boxes.get(image_id, _NO_BOXES)
        if self.flip and torch.rand(()) < 0.5:
            picture = ImageOps.mirror(picture)
            boxes = mirrored(boxes, 0, picture.width)
        size = self.rule.target_size(picture.height, picture.width)
        return to_sample(picture, boxes, labels, image_id, size)


Boxes = tuple[Array, Array]  # corners (N, 4) and labels (N,)
_NO_BOXES: Boxes = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def _usable_boxes(truth: Annotations, files: ImageFiles, counts: _Counts) -> dict[str, Boxes]:
    """Boxes to train on by image id, cut at the edges of their images; others are counted."""
    usable: defaultdict[str, list[tuple[list[float], int]]] = defaultdict(list)
    for one in truth.annotations:
        if one.image_id not in files.found:
            continue  # the image is said to be missing
        corners = _corners_within(one, files, counts)
        if corners is not None:
            usable[one.image_id].append((corners, one.category_id))
    return {
        image: (
            np.array([corners for corners, _ in boxes], np.float32),
            np.array([label for _, label in boxes], np.int64),
        )
        for image, boxes in usable.items()
    }


def _corners_within(one: Annotation, files: ImageFiles, counts: _Counts) -> list[float] | None:
    """The corners of a box within its image; None, after counting it, where nothing is left."""
    if one.iscrowd:
        counts.add("crowds are left out", one.name)
        return None
    left, top, width, height = one.bbox
    if min(width, height) <= 0:
        counts.add("boxes without an area are left out", one.name)
        return None
    columns, rows = files.found[one.image_id].size
    right, low = left + width, top + height
    cut = [max(left, 0.0), max(top, 0.0), min(right, columns), min(low, rows)]
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        counts.add("boxes that lie outside of their images are left out", one.name)
        return None
    if max(-left, -top, right - columns, low - rows) > 1:  # a pixel is a matter of rounding
        counts.add("boxes that reach beyond their images are cut at the edge", one.name)
    return cut


def _image_notes(folder: Path, files: ImageFiles, images: Iterable[Image]) -> list[str]:
    counts = _Counts()
    for name in files.outside:
        counts.add(f"images lie outside of {folder}, where their names lead", name)
    for name in files.missing:
        counts.add("images are missing and are left out", name)
    for one in files.unreadable:
        counts.add("images cannot be read and are left out", f"{one.path} ({one.reason})")
    for name in files.shortened:
        counts.add("images are found by the ends of their names", name)
    for image in images:
        found = files.found[image.id]
        if image.width and image.height and (image.width, image.height) != found.size:
            counts.add(
                "images have another size than the annotations say, and boxes are taken as pixels "
                "of the image",
                f"{found.path} ({found.size[0]} x {found.size[1]}, and not "
                f"{image.width} x {image.height})",
            )
    return counts.lines()


def _unlisted_notes(truth: Annotations) -> list[str]:
    if not truth.of_unlisted_images.count:
        return []
    unlisted = counted(truth.of_unlisted_images.count, "annotation")
    return [
        f"left out: {unlisted} of images that the file does not list; the first is "
        f"{truth.of_unlisted_images.first}"
    ]


def _category_notes(truth: Annotations) -> list[str]:
    ids: defaultdict[str, list[int]] = defaultdict(list)
    for number, name in truth.classes.items():
        ids[name].append(number)
    lines = [
        f"several categories are called {name}: {', '.join(map(str, numbers))}"
        for name, numbers in ids.items()
        if len(numbers) > 1
    ]
    with_objects = {one.category_id for one in truth.annotations}
    if empty := [name for number, name in truth.classes.items() if number not in with_objects]:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        lines.append(f"categories without an object: {', '.join(empty[:3])}{more}")
    return lines
