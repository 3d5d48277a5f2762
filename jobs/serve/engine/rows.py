"""Images of requests as rows of the pipeline, and its rows as answers."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.serve.engine.engine import Labelled
from pipeline.schema import EMPTY_FILE, ENCODED, OK


def encoded_table(images: Sequence[bytes], keys: Sequence[str]) -> pa.Table:
    """The ENCODED rows of image files. A key is the name of an image."""
    return pa.Table.from_pylist(
        [_encoded_row(image, key) for image, key in zip(images, keys, strict=True)], schema=ENCODED
    )


def _encoded_row(image: bytes, key: str) -> dict[str, Any]:
    row = {"image_id": key, "shard": key, "index_in_shard": 0, "status": OK, "encoded": image}
    if not image:
        row |= {"status": EMPTY_FILE, "error": "zero bytes", "encoded": None}
    return row


def answers(detected: pa.Table, labels: Sequence[str]) -> list[Labelled]:
    """The answers in DETECTED rows, in their order."""
    names = ("status", "error", "width", "height", "boxes")
    return [_answer(row, labels) for row in detected.select(names).to_pylist()]


def _answer(row: dict[str, Any], labels: Sequence[str]) -> Labelled:
    boxes = row["boxes"]
    return Labelled(
        row["status"],
        row["error"],
        row["width"],
        row["height"],
        [labels[box["label_id"]] for box in boxes],
        [box["score"] for box in boxes],
        [(box["x_min"], box["y_min"], box["x_max"], box["y_max"]) for box in boxes],
    )


def seconds_of_image(detected: pa.Table) -> float:
    """The seconds that a detector took for each image of DETECTED rows."""
    return float(pc.mean(detected["detect_seconds"]).as_py() or 0.0)
