"""A detector without a network: its boxes tell in which batch, place and company an image was."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.detector import Detections, Size
from model.resize import ResizeRule, canvas_rule

RULE = ResizeRule(800, 1333)


@dataclass
class Batch:
    """What a detector was given."""

    pixels: Tensor
    valid: Tensor | None
    sizes: Tensor

    @property
    def images(self) -> list[int]:
        """The first byte of each image, which tells images apart; blanks are left out."""
        assert self.valid is not None
        is_image = self.valid.prod(1) > 1
        found: list[int] = self.pixels[is_image, 0, 0, 0].tolist()
        return found


@dataclass
class FakePending:
    """Detections that are ready after some seconds, or fail."""

    found: Detections
    seconds: float
    error: Exception | None = None
    device_seconds: float | None = 8.0

    def result(self) -> Detections:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.found


@dataclass
class FakeDetector:
    """It meets `BatchDetector` as a GPU's does. `fails` may return an error for a batch."""

    count: int = 4
    ahead: int = 1
    seconds: float = 0.0
    fails: Callable[[Batch], Exception | None] = lambda batch: None
    labels: tuple[str, ...] = ("", "thing")
    resize: ResizeRule = RULE
    top: int = 1
    pads: bool = True
    pins: bool = False
    enlarges: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    copies: torch.cuda.Stream | None = None
    batches: list[Batch] = field(default_factory=list)
    memory_given_back: int = 0
    warmed_up: int = 0
    _under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def canvas(self, size: Size) -> Size:
        return canvas_rule(self.resize).canvas(*size)

    def submit(
        self, pixels: Tensor, valid: Tensor | None, sizes: Tensor, sources: Tensor | None = None
    ) -> FakePending:
        """One detection for each image, whose score and box are functions of its own pixels."""
        batch = Batch(pixels.clone(), valid, sizes)
        with self._lock:
            self.batches.append(batch)
        own = pixels[:, 0, 0].float()  # (B, 3)
        scores = (own[:, :1] + 1) / 512
        boxes = torch.cat((own[:, :1], own[:, :1], own[:, 1:] + 1000), dim=1)[:, None]
        found = Detections(scores, torch.ones(len(own), 1, dtype=torch.int64), boxes)
        return FakePending(found, self.seconds, self.fails(batch))

    def warm_up(self) -> bool:
        self.warmed_up += 1
        return self.warmed_up < 3

    def give_memory_back(self) -> None:
        self.memory_given_back += 1
