"""OUTPUTs made by hand, through the functions that publish a run's tables."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.plan.shards import to_table
from pipeline.schema import DETECTED, OK, Member, Shard
from pipeline.stages.publish import parts, publish_part, reconcile
from pipeline.stages.stage import stage
from pipeline.stages.staged import staged
from tests.support.committed import commit_run, make_target

Box = tuple[int, float, float, float, float, float]  # label_id, score, x_min, y_min, x_max, y_max


@dataclass(frozen=True)
class Labelled:
    """One image of a run; a file unless it has a `shard`."""

    image_id: str
    boxes: Sequence[Box] = ()
    status: str = OK
    shard: str = "files"
    uri: str | None = None  # None: the image_id
    etag: str = "e"


def write_run(
    output: Path,
    images: Iterable[Labelled],
    labels: Sequence[str],
    run_id: str = "20260101T000000Z-aaaaaa",
    score_threshold: float = 0.0,
    source: str = "in",
) -> str:
    """Publish `images` as a run of `output`, with its run.json; return OUTPUT."""
    target = make_target(output, run_id, labels, str(output / "_staging"))
    by_shard: defaultdict[str, list[Labelled]] = defaultdict(list)
    for image in images:
        by_shard[image.shard].append(image)
    for shard, members in by_shard.items():
        rows = [_row(shard, i, len(members), image) for i, image in enumerate(members)]
        stage(pa.Table.from_pylist(rows, schema=DETECTED), target.staging)
    found = staged(target.staging)
    reconcile(list(by_shard), found)
    files = [file for part in parts(list(by_shard), found) for file in publish_part(part, target)]
    counts = Counter(image.status for members in by_shard.values() for image in members)
    folder = output / "_runs" / run_id
    folder.mkdir(parents=True)
    options = {"score_threshold": score_threshold}
    (folder / "run.json").write_text(json.dumps({"run_id": run_id, "options": options}))
    pq.write_table(to_table(_plan(by_shard)), folder / "plan.parquet")
    commit_run(target, source, files, dict(counts))
    for file in (output / "_staging").iterdir():
        file.unlink()
    return str(output)


def _plan(by_shard: Mapping[str, Sequence[Labelled]]) -> list[Shard]:
    """Loose files, or archives where images have a `uri` other than their image_id."""
    shards = []
    for shard, images in by_shard.items():
        members = dict.fromkeys(Member(i.uri or i.image_id, i.etag, 1) for i in images)
        kind = "tar" if images[0].uri else "files"
        shards.append(Shard(shard, kind, tuple(members)))
    return shards


def _row(shard: str, index: int, size: int, image: Labelled) -> dict[str, Any]:
    names = ("label_id", "score", "x_min", "y_min", "x_max", "y_max")
    boxes = sorted(image.boxes, key=lambda box: -box[1])
    return {
        "image_id": image.image_id,
        "uri": image.uri or image.image_id,
        "shard": shard,
        "index_in_shard": index,
        "shard_size": size if index == size - 1 else None,
        "etag": image.etag,
        "status": image.status,
        "error": None if image.status == OK else "made to fail",
        "width": 640,
        "height": 480,
        "orientation": 1,
        "boxes": [dict(zip(names, box, strict=True)) for box in boxes],
        "processed_at": datetime.now(UTC),
    }


def from_coco(
    truth: dict[str, Any], detections: Iterable[dict[str, Any]], folder: str
) -> tuple[list[Labelled], list[str]]:
    """COCO results as images at `folder`/<file_name>, and the labels of their classes."""
    boxes: defaultdict[Any, list[Box]] = defaultdict(list)
    for found in detections:
        x, y, width, height = found["bbox"]
        box = (found["category_id"], found["score"], x, y, x + width, y + height)
        boxes[found["image_id"]].append(box)
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    labels = [names.get(number, "N/A") for number in range(max(names) + 1)]
    images = [
        Labelled(f"{folder}/{image['file_name']}", boxes[image["id"]]) for image in truth["images"]
    ]
    return images, labels
