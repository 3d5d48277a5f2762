"""Makes OUTPUTs by hand, through the functions that publish a run's tables."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jobs.output.run_documents import write_document, write_table
from pipeline.plan.shards import table_of_shards
from pipeline.schema import DETECTED, OK, Member, Shard
from pipeline.stages.publish import group_into_parts, publish_part, reconcile
from pipeline.stages.stage import stage
from pipeline.stages.staged import read_staging
from pipeline.storage.files import join, open_location, remove_tree
from tests.support.committed import commit_run, make_target

LABELS = ("", "circle", "tea cup", "", "star")
SOURCE = "file:///lake"


class Box(NamedTuple):
    """One box, in pixels."""

    label_id: int
    score: float
    x_min: float
    y_min: float
    x_max: float
    y_max: float


Corners = tuple[int, float, float, float, float, float]  # the fields of a Box, in order


def random_boxes(seed: int, count: int) -> list[Box]:
    """Draw boxes of LABELS within 400 x 300 pixels, with sides of at least 8, best first."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform((0, 0), (300, 200), (count, 2))
    sizes = rng.uniform(8, 100, (count, 2))
    scores = sorted(rng.uniform(0.05, 1, count), reverse=True)
    numbers = np.column_stack([scores, corners, corners + sizes]).astype(np.float32).tolist()
    return [Box(int(rng.choice([1, 2, 4])), *row) for row in numbers]


@dataclass(frozen=True)
class Labelled:
    """One image of a run; it is a loose file unless it has a `shard`."""

    image_id: str
    boxes: Sequence[Box | Corners] = ()
    status: str = OK
    shard: str = "files"
    uri: str | None = None  # None: the image_id
    etag: str = "e"
    width: int = 640
    height: int = 480

    def named_boxes(self) -> list[Box]:
        return [Box(*box) for box in self.boxes]


def write_run(
    output: str | Path,
    images: Iterable[Labelled],
    labels: Sequence[str],
    run_id: str = "20260101T000000Z-aaaaaa",
    score_threshold: float = 0.0,
    source: str = "in",
    replaces: Sequence[str] = (),
    **options: Any,
) -> str:
    """Publish `images` as a run of OUTPUT, a folder or a URL, with its run.json; return OUTPUT.

    `options` are recorded beside the threshold; what they ask for is not done.
    """
    output = str(output)
    staging = join(output, "_staging", run_id, "blocks")
    target = make_target(output, run_id, labels, staging)
    by_shard: defaultdict[str, list[Labelled]] = defaultdict(list)
    for image in images:
        by_shard[image.shard].append(image)
    for shard, members in by_shard.items():
        rows = [_row(shard, i, len(members), image) for i, image in enumerate(members)]
        stage(pa.Table.from_pylist(rows, schema=DETECTED), staging)
    found = read_staging(staging)
    reconcile(list(by_shard), found)
    files = [
        file
        for part in group_into_parts(list(by_shard), found)
        for file in publish_part(part, target)
    ]
    counts = Counter(image.status for members in by_shard.values() for image in members)
    record = {"run_id": run_id, "options": {"score_threshold": score_threshold, **options}}
    write_document(output, run_id, "run.json", record)
    write_table(join(output, "_runs", run_id, "plan.parquet"), table_of_shards(_plan(by_shard)))
    commit_run(target, source, files, dict(counts), replaces)
    remove_tree(*open_location(staging, "staging"))
    return output


def _plan(by_shard: Mapping[str, Sequence[Labelled]]) -> list[Shard]:
    """Plan the shards; those whose images have a `uri` of their own are archives."""
    shards = []
    for shard, images in by_shard.items():
        members = dict.fromkeys(Member(i.uri or i.image_id, i.etag, 1) for i in images)
        kind = "tar" if images[0].uri else "files"
        shards.append(Shard(shard, kind, tuple(members)))
    return shards


def _row(shard: str, index: int, size: int, image: Labelled) -> dict[str, Any]:
    boxes = sorted(image.named_boxes(), key=lambda box: -box.score)
    return {
        "image_id": image.image_id,
        "uri": image.uri or image.image_id,
        "shard": shard,
        "index_in_shard": index,
        "shard_size": size if index == size - 1 else None,
        "etag": image.etag,
        "status": image.status,
        "error": None if image.status == OK else "made to fail",
        "width": image.width,
        "height": image.height,
        "orientation": 1,
        "boxes": [box._asdict() for box in boxes],
        "processed_at": datetime.now(UTC),
    }


def from_coco(
    truth: dict[str, Any], detections: Iterable[dict[str, Any]], folder: str
) -> tuple[list[Labelled], list[str]]:
    """Convert COCO results to images at `folder`/<file_name> and the labels of their classes."""
    boxes: defaultdict[Any, list[Box]] = defaultdict(list)
    for found in detections:
        x, y, width, height = found["bbox"]
        box = Box(found["category_id"], found["score"], x, y, x + width, y + height)
        boxes[found["image_id"]].append(box)
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    labels = [names.get(number, "N/A") for number in range(max(names) + 1)]
    images = [
        Labelled(f"{folder}/{image['file_name']}", boxes[image["id"]]) for image in truth["images"]
    ]
    return images, labels
