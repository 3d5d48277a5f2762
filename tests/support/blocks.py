"""Blocks of detections, as detectors hand them to `stage`."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.plan.remaining import Staged
from pipeline.schema import DETECTED

BOX = {"label_id": 1, "score": 0.5, "x_min": 0.0, "y_min": 1.0, "x_max": 2.0, "y_max": 3.0}


def block(shard: str, indices: list[int], size: int | None = None, boxes: int = 1) -> pa.Table:
    """Make a block of one shard's rows; its last row states the `size` of the shard."""
    rows: list[dict[str, Any]] = [
        {
            "image_id": str(index),  # like ids from an id column, these are not unique among shards
            "uri": shard,
            "shard": shard,
            "index_in_shard": index,
            "shard_size": size if index == indices[-1] else None,
            "etag": "e",
            "status": "ok",
            "boxes": [{**BOX, "score": 0.9 - 0.1 * k} for k in range(boxes)],
            "processed_at": datetime.now(UTC),
        }
        for index in indices
    ]
    return pa.Table.from_pylist(rows, schema=DETECTED)


def complete_shards(found: Staged) -> set[str]:
    """Return the shards of which every image is staged."""
    return set(found.shards.filter(pa.array(found.found == found.sizes)).to_pylist())
