"""How full the batches of a detector are."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from model.detector import BatchDetector, Pending

Form = tuple[int, int, int]
"""The count of places of a batch, and the height and width of its canvas."""


@dataclass
class Fill:
    """How full the batches were that detectors submitted."""

    images: int = 0
    places: int = 0  # of images and blanks
    batches: int = 0
    pixels: int = 0  # pixels of the images themselves
    canvas: int = 0  # pixels of the batches' canvases, padding included
    forms: Counter[Form] = field(default_factory=Counter)

    def add(self, form: Form, areas: Sequence[int]) -> None:
        """Count a batch of a form, of whose images these are the pixels."""
        count, height, width = form
        self.images += len(areas)
        self.places += count
        self.batches += 1
        self.pixels += sum(areas)
        self.canvas += count * height * width
        self.forms[form] += 1

    def describe(self) -> dict[str, Any]:
        return {
            "mean_batch": round(self.images / self.batches, 3),
            "mean_fill": round(self.images / self.places, 4),
            "canvas_per_pixel": round(self.canvas / self.pixels, 4),
            "batches": self.batches,
            "forms": len(self.forms),
        }


def fill_as_text(details: dict[str, Any]) -> str:
    """Describe in words what `Fill.describe` put into the details of a row."""
    return (
        f"fill {details['mean_fill']:.0%}, {details['canvas_per_pixel']:.3f} of the images' "
        f"pixels, {details['batches']} batches of {details['forms']} forms"
    )


def form_of(pixels: Tensor, valid: Tensor | None) -> tuple[Form, list[int]]:
    """The form of a batch as `submit` takes it, and the areas of its images without blanks."""
    count, height, width, _ = pixels.shape
    areas = [height * width] * count if valid is None else valid.prod(1).tolist()
    return (count, height, width), [area for area in areas if area > 1]  # a blank has one pixel


def watch_batches(detector: BatchDetector, add: Callable[[Form, list[int]], None]) -> None:
    """Call `add` with the form and the areas of each batch that `detector` submits from now on."""
    submit = detector.submit

    def watched(
        pixels: Tensor, valid: Tensor | None, sizes: Tensor, sources: Tensor | None = None
    ) -> Pending:
        add(*form_of(pixels, valid))
        return submit(pixels, valid, sizes, sources)

    vars(detector)["submit"] = watched


class BatchLog:
    """A file of this process in a folder, with a line for each batch, for other processes."""

    def __init__(self, folder: str):
        self.path = Path(folder, f"{os.getpid()}.jsonl")

    def add(self, form: Form, areas: Sequence[int]) -> None:
        """Add a batch of a form, of whose images these are the pixels."""
        with self.path.open("a") as file:
            file.write(json.dumps([form, areas]) + "\n")


def read_fill(folder: Path) -> Fill:
    """Sum all batches in the logs in a folder."""
    fill = Fill()
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            (count, height, width), areas = json.loads(line)
            fill.add((count, height, width), areas)
    return fill
