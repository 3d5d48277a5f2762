"""Images of a run that its page shows, chosen from a few of its table files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from jobs.output.manifest import FileOfRun

DRAWN = 0.3  # least score of the boxes that are drawn, although the run may keep lower ones
BOXES_DRAWN = 60  # most boxes drawn on one image
SHOWN = 3  # images of each kind
CLASSES_SHOWN = 8  # most classes of which the best and the most doubtful box are shown
# With few classes more boxes of each are shown, so that there are about as many images.
PAIRS_SHOWN = 4  # least number of pairs of a best and a most doubtful box, where there are so many
FILES_LOOKED_INTO = 4  # table files, of 100,000 images each, from which images are chosen
# An archive is read from its beginning to the last image wanted, so only its start is used.
ARCHIVES_OPENED, ARCHIVE_IMAGES = 4, 64
BEST, DOUBTFUL = "best", "doubtful"
# The SQL condition on boxes of a class that has a name. Earlier versions kept others too.
HAS_NAME = "trim(coalesce(label, '')) <> ''"

# Kind -> (heading, SQL condition, SQL order).
KINDS = {
    "random": ("Chosen at random", "true", "hash(image_id, shard)"),
    "crowded": ("Most objects", "boxes > 1", "boxes DESC, hash(image_id)"),
    "empty": ("Without a box", "boxes = 0", "hash(image_id)"),
}
_BY_CLASS = """
SELECT label, arg_max(box, {'score': score, 'hash': hash(image_id)}, $count),
    arg_min(box, {'score': score, 'hash': hash(image_id)}, $count)
FROM (SELECT label, score, image_id, {'shard': shard, 'image_id': image_id,
          'detection': detection} AS box
      FROM detections SEMI JOIN candidates USING (shard, image_id)
      WHERE score >= $drawn AND list_contains($labels, label))
GROUP BY label
"""


@dataclass(frozen=True)
class Shown:
    """An image that the page shows, and why it was chosen."""

    kind: str  # key of KINDS, BEST or DOUBTFUL
    image_id: str
    uri: str
    shard: str
    index: int
    size: tuple[int, int]  # (width, height) in pixels
    count: int  # boxes of the image that count
    boxes: list[dict[str, Any]]  # label, label_id, score and corners of those drawn, best first


@dataclass(frozen=True)
class Samples:
    """Images to show, and the boxes of each class that are the best and the most doubtful.

    Each image of `images` is chosen once. Each image of `by_class` has the one box for which it was
    chosen.
    """

    images: list[Shown]
    by_class: list[tuple[str, list[Shown]]]  # (label, pairs of BEST and DOUBTFUL)
    chosen_from: int  # number of images among which these were chosen


def choose_files(files: list[FileOfRun]) -> list[FileOfRun]:
    """Choose FILES_LOOKED_INTO pairs of table files, evenly spaced."""
    names = sorted({file["path"].rpartition("/")[2] for file in files})
    step = max(1, len(names) / FILES_LOOKED_INTO)
    chosen = {names[int(k * step)] for k in range(min(len(names), FILES_LOOKED_INTO))}
    return [file for file in files if file["path"].rpartition("/")[2] in chosen]


def choose_samples(
    tables: duckdb.DuckDBPyConnection,
    archives: Sequence[str],
    fetchable: str,
    labels: Sequence[str],
    drawn: float,
) -> Samples:
    """Choose the images to show.

    `archives` are the names of shards that are not loose files. `fetchable` is an SQL condition on
    images that can be fetched. `labels` are the classes, the most important first. Boxes count from
    a score of `drawn` up.
    """
    tables.register("archives", pa.table({"shard": pa.array(archives, pa.string())}))
    tables.execute(
        "CREATE TEMP TABLE opened AS SELECT shard FROM archives SEMI JOIN images USING (shard) "
        f"ORDER BY hash(shard) LIMIT {ARCHIVES_OPENED}"
    )
    tables.execute(
        "CREATE TEMP TABLE candidates AS SELECT image_id, uri, shard, index_in_shard, width, "
        "height, coalesce(found.drawn, 0) AS boxes FROM images "
        "LEFT JOIN (SELECT shard, image_id, count(*) AS drawn FROM detections "
        f"WHERE score >= {drawn} AND {HAS_NAME} GROUP BY ALL) AS found USING (shard, image_id) "
        f"WHERE status = 'ok' AND {fetchable} AND (shard NOT IN (SELECT shard FROM archives) OR "
        f"(shard IN (SELECT shard FROM opened) AND index_in_shard < {ARCHIVE_IMAGES}))"
    )
    (count,) = tables.sql("SELECT count(*) FROM candidates").fetchall()[0]
    return Samples(
        _choose_images(tables, drawn),
        _choose_by_class(tables, labels[:CLASSES_SHOWN], drawn),
        count,
    )


def _choose_images(tables: duckdb.DuckDBPyConnection, drawn: float) -> list[Shown]:
    """Choose the images of KINDS, each once."""
    chosen: dict[tuple[str, str], str] = {}
    for kind, (_, condition, order) in KINDS.items():
        rows = tables.sql(
            f"SELECT shard, image_id FROM candidates WHERE {condition} ORDER BY {order} "
            f"LIMIT {SHOWN * len(KINDS)}"
        ).fetchall()
        new = [row for row in rows if row not in chosen]
        chosen.update(dict.fromkeys(new[:SHOWN], kind))
    which = f"score >= {drawn} AND {HAS_NAME}"
    return [_read_image(tables, kind, *image, which) for image, kind in chosen.items()]


def _choose_by_class(
    tables: duckdb.DuckDBPyConnection, labels: Sequence[str], drawn: float
) -> list[tuple[str, list[Shown]]]:
    """Choose the best and the most doubtful boxes of each class, in the order of `labels`."""
    if not labels:
        return []
    each = -(-PAIRS_SHOWN // len(labels))
    rows = tables.execute(_BY_CLASS, {"count": each, "drawn": drawn, "labels": list(labels)})
    found = {label: (best, doubtful) for label, best, doubtful in rows.fetchall()}
    result = []
    for label in labels:
        best, doubtful = found.get(label, ([], []))
        # Of few boxes the better half are the best, and the others the most doubtful.
        count = min(each, (len({_key(box) for box in [*best, *doubtful]}) + 1) // 2)
        pairs = [(BEST, box) for box in best[:count]]
        shown = {_key(box) for _, box in pairs}
        pairs += [(DOUBTFUL, box) for box in doubtful[:count] if _key(box) not in shown]
        result.append(
            (
                label,
                [
                    _read_image(
                        tables,
                        kind,
                        box["shard"],
                        box["image_id"],
                        f"detection = {box['detection']}",
                    )
                    for kind, box in pairs
                ],
            )
        )
    return [(label, pairs) for label, pairs in result if pairs]


def _key(box: dict[str, Any]) -> tuple[str, str, int]:
    return box["shard"], box["image_id"], box["detection"]


def _read_image(
    tables: duckdb.DuckDBPyConnection, kind: str, shard: str, image_id: str, which: str
) -> Shown:
    """Read an image with the boxes for which the SQL condition `which` holds."""
    ((uri, index, width, height, count),) = tables.execute(
        "SELECT uri, index_in_shard, width, height, boxes FROM candidates "
        "WHERE shard = ? AND image_id = ? LIMIT 1",
        [shard, image_id],
    ).fetchall()
    boxes = tables.execute(
        "SELECT label, label_id, score, x_min, y_min, x_max, y_max FROM detections "
        f"WHERE shard = ? AND image_id = ? AND {which} ORDER BY detection LIMIT {BOXES_DRAWN}",
        [shard, image_id],
    )
    names = [column[0] for column in boxes.description or []]
    rows = [dict(zip(names, row, strict=True)) for row in boxes.fetchall()]
    return Shown(kind, image_id, uri, shard, index, (width, height), count, rows)
