"""A detector, and batches that have one image at any position, beside any others."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jobs.bench.gpu.lockstep import positions_in
from model.cuda_graphs import RECORD_AT
from model.deformable_detr import DeformableDetr
from model.named import RANDOM
from model.predictor import Predictor
from model.preprocess import normalize
from model.zoo import create_deformable_detr, prepare

RANDOM_IMAGES = 16
ZEROS, FULL = RANDOM_IMAGES, RANDOM_IMAGES + 1  # two more images: all 0, all 255
NEIGHBOURS = {"random": None, "0": ZEROS, "255": FULL}
FLOATS = {"random": None, "NaN": float("nan"), "Inf": float("inf")}
SPREAD = 0.02  # scale of the random weights that replace zeros

Row = Callable[[int, int, str], Tensor]
"""The detector's result for image 0, by count of the batch, its position, and neighbours."""


@dataclass(frozen=True)
class Case:
    """A model, its precision, and whether its batches are padded."""

    model: str
    precision: str
    padded: bool

    @property
    def name(self) -> str:
        return f"{self.model}, {self.precision}, {'padded' if self.padded else 'exact'}"

    def size(self, tiny: bool) -> tuple[int, int]:
        """Return height and width of its batches."""
        if tiny:
            return (96, 128)
        return (832, 1088) if self.padded else (800, 1066)


def create_detector(case: Case, device: str) -> DeformableDetr:
    """Make a detector with random, non-zero weights: sums of zeros are equal in any order."""
    net = create_deformable_detr(case.model, RANDOM, device, padding="invariant", training=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * SPREAD)
    return prepare(net, case.precision)


class Batches:
    """Runs a case's detector on its batches. Use it under `torch.inference_mode`."""

    def __init__(self, case: Case, device: str, tiny: bool):
        self.predictor = Predictor(create_detector(case, device), device)
        height, width = case.size(tiny)
        generator = torch.Generator().manual_seed(0)
        shape = (RANDOM_IMAGES + 2, height, width, 3)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        pixels[ZEROS], pixels[FULL] = 0, 255
        areas = [
            torch.randint(side // 2, side, (len(pixels),), generator=generator)
            for side in (height, width)
        ]
        valid = torch.stack(areas, dim=1)
        if case.padded:
            for image, (rows, columns) in zip(pixels, valid.tolist(), strict=True):
                image[rows:], image[:, columns:] = 0, 0
        self.pixels = pixels.to(device)
        self.valid = valid.to(device) if case.padded else None
        self.sizes = torch.tensor([[480, 640]] * len(pixels), device=device)
        self.recorded: set[int] = set()  # counts that have a CUDA graph

    def detect_first(self, count: int) -> Tensor:
        """Detect in the first images, in their order."""
        valid = None if self.valid is None else self.valid[:count]
        return self.predictor._detect(self.pixels[:count], valid, self.sizes[:count])

    def _around(
        self, count: int, position: int, neighbours: str
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Make a batch with image 0 at a position, beside random images or copies of one."""
        only = NEIGHBOURS.get(neighbours)
        others = list(range(1, count)) if only is None else [only] * (count - 1)
        images = [*others[:position], 0, *others[position:]]
        valid = None if self.valid is None else self.valid[images]
        return self.pixels[images], valid, self.sizes[images]

    def detect(self, count: int, position: int, neighbours: str) -> Tensor:
        """Return image 0's detections (N, 6)."""
        return self.predictor._detect(*self._around(count, position, neighbours))[position]

    def replay(self, count: int, position: int, neighbours: str) -> Tensor:
        """Return image 0's detections (N, 6) from a replayed CUDA graph."""
        graphed, batch = self.predictor.detect, self._around(count, position, neighbours)
        if count not in self.recorded:
            for _ in range(RECORD_AT):
                graphed(*batch)
            self.recorded.add(count)
        return graphed(*batch)[position].clone()  # the next replay overwrites this memory

    def predict(self, count: int, position: int, neighbours: str) -> Tensor:
        """Return the network's numbers for image 0 (Q, K + 4); other pixels may be NaN or Inf."""
        pixels, valid, _ = self._around(count, position, "random")
        values = normalize(pixels, valid, self.predictor.net.dtype)
        fill = FLOATS[neighbours]
        if fill is not None:
            own = values[position].clone()
            values.fill_(fill)[position] = own
        output = self.predictor.net(values, valid=valid)
        return torch.cat((output.pred_logits[position], output.pred_boxes[position]), dim=-1)


@torch.inference_mode()
def check_detector(batches: Batches, counts: Sequence[int], thorough: bool) -> dict[str, Any]:
    """Whether image 0 has the bits that it has alone, by the way that it is detected.

    If `thorough` is false, there is one digest for each count, to compare with other processes.
    """
    ways: dict[str, tuple[Row, Row, Iterable[str]]] = {
        "detections": (batches.detect, batches.detect, NEIGHBOURS),
        "network": (batches.predict, batches.predict, FLOATS),
    }
    if batches.predictor.on_gpu:
        ways["graph"] = (batches.replay, batches.detect, NEIGHBOURS)
    return {
        way: _check_way(row, alone(1, 0, "random"), counts, kinds if thorough else ("random",))
        for way, (row, alone, kinds) in ways.items()
    }


def _check_way(
    row: Row, alone: Tensor, counts: Sequence[int], kinds: Iterable[str]
) -> dict[str, Any]:
    """Return `same` by count and neighbours, groups of counts that agree, and a digest a count."""
    if not alone.isfinite().all():
        raise RuntimeError("image 0 gives no finite numbers, so that nothing can be compared")
    expected = digest_tensor(alone)
    groups: dict[str, list[int]] = {}
    same: dict[str, dict[str, bool]] = {}
    digests: dict[str, str] = {}
    for count in counts:
        found = {
            kind: {digest_tensor(row(count, at, kind)) for at in positions_in(count)}
            for kind in kinds
        }
        same[str(count)] = {kind: digest == {expected} for kind, digest in found.items()}
        digests[str(count)] = digest_tensor(row(count, 0, "random"))
        if len(all_found := set().union(*found.values())) == 1:
            groups.setdefault(all_found.pop(), []).append(count)
    return {"same": same, "agreeing": list(groups.values()), "digests": digests}


def digest_tensor(tensor: Tensor) -> str:
    """Return 16 hex digits of a digest of fp32 numbers."""
    return hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()[:16]
