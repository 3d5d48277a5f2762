"""What a command must know of a detector, and what a worker needs to load it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import DamagedCheckpoint
from model.resize import ResizeRule


@dataclass(frozen=True)
class Description:
    """What a command must know of a detector."""

    labels: tuple[str, ...]  # the class names by number; "" is a number that stands for no class
    resize: ResizeRule
    precisions: tuple[str, ...]  # that it offers, of `model.zoo.DTYPES`
    identity: Mapping[str, Any]  # all that decides its detections, beside the weights
    weights: str  # digest of the weights, or "random"
    is_alone: bool = False  # whether each image goes alone on a GPU, too
    place: str | None = None  # of the weights, as workers shall find them; None: their own
    weight_bytes: int = 0  # in memory, of a detector of others, as far as that is known


@dataclass(frozen=True)
class Load:
    """Which weights of a detector to load, and how."""

    weights: str | None  # as a user names them
    sha256: str | None  # the digest that they must have; None if they are random
    device: str  # "cpu", "cuda", ...
    precision: str  # of `model.zoo.DTYPES`
    count: int | None = None  # images of a batch on a GPU; None: the detector's own number
    top: int = 100  # the most detections of an image

    def check(self, name: str, found: str) -> None:
        """Raise DamagedCheckpoint if the digest of what was found is another one."""
        if self.sha256 is not None and found != self.sha256:
            raise DamagedCheckpoint(
                f"{name} has sha256 {found}, and the command found {self.sha256} when it began: it "
                "was replaced meanwhile, or it differs between nodes"
            )
