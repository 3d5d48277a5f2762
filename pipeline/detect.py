"""detect: PREPARED -> DETECTED, in an actor that holds the model on its device."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.host_memory import keep_freed_memory
from model.postprocess import postprocess
from model.preprocess import batch_images
from model.zoo import create_model
from pipeline.schema import DETECTED, DETECTOR_ERROR, OK

# Pictures whose sides round up to the same multiple of this travel in one batch: at 800 x 1066 the
# padding is then at most 1/13 of either side.
BUCKET = 64
TOP = 100  # detections kept of an image, as published

Boxes = list[dict[str, Any]]


@dataclass(frozen=True)
class DetectorSpec:
    """All that an actor needs to build its detector."""

    model: str
    weights: str | None
    device: str  # "cpu" or "cuda"
    precision: str
    score_threshold: float
    batch_size: int  # pictures in one forward pass, at most


class Detector:
    """Labels tables of prepared pictures; failed rows pass through."""

    def __init__(self, spec: DetectorSpec):
        if spec.device == "cpu":  # Ray allows an actor with a share of a CPU one thread
            torch.set_num_threads(os.cpu_count() or 1)
            keep_freed_memory()
        self.spec = spec
        self.most = spec.batch_size  # pictures at once; less where memory does not hold as many
        self.net = create_model(
            spec.model, spec.weights, spec.device, spec.precision, padding="invariant"
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """PREPARED -> DETECTED, row for row."""
        rows = table.drop_columns(["pixels", "rows", "columns"]).to_pylist()
        for row in rows:
            row.update(boxes=[], detect_seconds=0.0)
        images = {i: _image(table, i) for i, row in enumerate(rows) if row["status"] == OK}
        for group in self._batches(images):
            began = time.perf_counter()
            self._label([rows[i] for i in group], [images[i] for i in group])
            share = (time.perf_counter() - began) / len(group)
            for index in group:
                rows[index]["detect_seconds"] = share
        now = datetime.now(UTC)
        limit = self.most if self.most < self.spec.batch_size else None
        for row in rows:
            row.update(processed_at=now, batch_limit=limit)
        return pa.Table.from_pylist(rows, schema=DETECTED)

    def _batches(self, images: dict[int, Tensor]) -> Iterator[list[int]]:
        """Indices of pictures of like shape, at most `most` together, which may fall meanwhile."""
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index, image in images.items():
            key = tuple(-(-side // BUCKET) for side in image.shape[:2])
            buckets.setdefault(key, []).append(index)
        for bucket in buckets.values():
            bucket.sort(key=lambda index: tuple(images[index].shape))
            start = 0
            while start < len(bucket):
                group = bucket[start : start + self.most]
                yield group
                start += len(group)

    def _label(self, rows: list[dict[str, Any]], images: list[Tensor]) -> None:
        """Fill in each row's boxes. A batch that fails is halved until the culprit is alone.

        Where it was too large for the memory, later ones are no larger than its halves.
        """
        half = len(rows) // 2
        try:
            sizes = torch.tensor([(row["height"], row["width"]) for row in rows])
            for row, boxes in zip(rows, self._detect(images, sizes), strict=True):
                row["boxes"] = boxes
            return
        except (RuntimeError, MemoryError) as error:  # torch's: memory and kernel failures
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if half and _is_of_memory(error):
                self.most = min(self.most, half)
        # Not within `except`: the error holds on to the tensors of the attempt.
        if not half:
            rows[0].update(status=DETECTOR_ERROR, error=reason)
            return
        self._label(rows[:half], images[:half])
        self._label(rows[half:], images[half:])

    @torch.inference_mode()
    def _detect(self, images: list[Tensor], sizes: Tensor) -> Iterable[Boxes]:
        """Boxes from the threshold up (at 0: the best TOP), in pixels of `sizes` (B, 2)."""
        values, mask = batch_images(images, self.spec.device)
        found = postprocess(self.net(values, mask), sizes.to(self.spec.device), TOP)
        scores, labels, boxes = (t.cpu().numpy() for t in (found.scores, found.labels, found.boxes))
        for index in range(len(images)):
            keep = np.flatnonzero(scores[index] >= self.spec.score_threshold)
            yield [
                {
                    "label_id": int(labels[index, k]),
                    "score": float(scores[index, k]),
                    **dict(zip(_CORNERS, boxes[index, k].tolist(), strict=True)),
                }
                for k in keep
            ]


def _is_of_memory(error: Exception) -> bool:
    """Whether a host or a device had too little; torch has no type of its own for hosts."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error) or "out of memory" in str(error)


_CORNERS = ("x_min", "y_min", "x_max", "y_max")


def _image(table: pa.Table, index: int) -> Tensor:
    """The picture of a row as (rows, columns, 3) uint8."""
    size = (table["rows"][index].as_py(), table["columns"][index].as_py(), 3)
    flat = np.frombuffer(table["pixels"][index].as_buffer(), np.uint8)
    return torch.from_numpy(flat.reshape(size).copy())
