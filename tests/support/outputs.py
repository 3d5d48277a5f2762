"""OUTPUTs with known labels, staged and published as a run does it, without a detector."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.output.views import connect
from pipeline.schema import DETECTED, OK
from pipeline.stages.publish import Part, PartFile, publish_part
from pipeline.stages.stage import stage
from pipeline.storage.files import join
from tests.support.committed import commit_run, make_target

LABELS = ("", "circle", "tea cup", "", "star")
SOURCE = "file:///lake"


@dataclass(frozen=True)
class Labelled:
    """An image to be written, its boxes best first."""

    image_id: str
    shard: str = f"{SOURCE}#files-00000"
    boxes: tuple[dict[str, Any], ...] = ()
    status: str = OK
    width: int = 400
    height: int = 300


def boxes(seed: int, count: int) -> tuple[dict[str, Any], ...]:
    """Boxes of 400 x 300 with sides of at least 8 pixels."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform((0, 0), (300, 200), (count, 2))
    sizes = rng.uniform(8, 100, (count, 2))
    scores = sorted(rng.uniform(0.05, 1, count), reverse=True)
    return tuple(
        {
            "label_id": int(rng.choice([1, 2, 4])),
            "score": float(np.float32(score)),
            **dict(zip(("x_min", "y_min"), map(float, low.astype("f4")), strict=True)),
            **dict(zip(("x_max", "y_max"), map(float, (low + size).astype("f4")), strict=True)),
        }
        for score, low, size in zip(scores, corners, sizes, strict=True)
    )


def write_run(
    output: str,
    images: Sequence[Labelled],
    run_id: str = "20260101T000000Z-000001",
    labels: tuple[str, ...] = LABELS,
) -> None:
    """A committed run that holds `images`, those of one shard side by side."""
    staging = join(output, "_staging", run_id, "blocks")
    target = make_target(output, run_id, labels, staging, "tiny")
    files: list[PartFile] = []
    grouped = groupby(sorted(images, key=lambda image: image.shard), lambda image: image.shard)
    for number, (shard, found) in enumerate(grouped):
        table = pa.Table.from_pylist(list(_rows(list(found))), schema=DETECTED)
        files += publish_part(Part(number, (shard,), (stage(table, staging).file,)), target)
    commit_run(target, SOURCE, files, {OK: len(images)})


def _rows(images: list[Labelled]) -> Iterator[dict[str, Any]]:
    for index, image in enumerate(images):
        yield {
            "image_id": image.image_id,
            "uri": image.image_id.partition("#")[0],
            "shard": image.shard,
            "index_in_shard": index,
            "status": image.status,
            "width": image.width,
            "height": image.height,
            "boxes": list(image.boxes),
            "processed_at": datetime.now(UTC),
        }


def rows(output: str, sql: str) -> list[tuple[Any, ...]]:
    with closing(connect(output)) as connection:
        return connection.sql(sql).fetchall()
