"""Match the images of an OUTPUT with those of an annotation file."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa

from jobs.coco.file_names import portable_name
from jobs.coco.records import Annotations
from pipeline.storage.files import InputError

# Rules that match an image of OUTPUT with its annotations, the surest rule first.
RULES = {
    "row": "the annotations give its image_id and shard, as `export` writes them",
    "image_id": "its image_id is the file_name",
    "path": "its path ends in the file_name",
    "key": "its key in an archive is the file_name without suffix",
    "id": "its image_id is the annotations' id",
    "name": "its last name is that of the file_name, in another folder",
}
ROW, IMAGE_ID, PATH, KEY, ID, NAME = RULES
# Rules that count only where those before them find nothing.
LAST_RULES = (ID, NAME)
MATCHED = pa.schema(
    [
        pa.field("run", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("status", pa.string()),
        pa.field("position", pa.int64()),  # position among the annotated images
    ]
)
# `wanted` may name whole ids, and the last parts of paths and keys, as portable names.
_CANDIDATES = r"""
WITH named AS (
    SELECT run, shard, image_id, uri, status, nfc_normalize(replace(image_id, '\', '/')) AS name,
        nfc_normalize(replace(regexp_replace(uri, '^(https?://[^?]*)\?.*', '\1'), '\', '/')) AS path
    FROM latest_images
)
SELECT run, shard, image_id, uri, status FROM named
WHERE name IN (FROM wanted)
    OR regexp_extract(name, '[^/#]*$') IN (FROM wanted)
    OR regexp_extract(path, '[^/]*$') IN (FROM wanted)
    OR (starts_with(path, 'http')
        AND nfc_normalize(url_decode(regexp_extract(path, '[^/]*$'))) IN (FROM wanted))
"""


@dataclass(frozen=True)
class MatchedImages:
    """Annotated images that OUTPUT holds."""

    table: pa.Table  # columns of MATCHED
    by_rule: dict[str, int]  # number of images that each rule of RULES found


def matched_images(connection: duckdb.DuckDBPyConnection, truth: Annotations) -> MatchedImages:
    """Find the newest labels of each annotated image, by the surest rule that finds it.

    InputError if no image is found, or if an image has several candidates.
    """
    names = _Names(truth)
    rows = _query_candidates(connection, names)
    hits: defaultdict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
    for row in rows:
        for rule, image in names.of(row):
            hits[image].setdefault(rule, []).append(row)
            break
    for rule in LAST_RULES:
        for row in rows if not hits else ():
            if found_image := names.found_by(rule, row):
                hits[found_image].setdefault(rule, []).append(row)
    if not hits:
        raise InputError(_describe_mismatch(connection, truth))
    positions = {image: position for position, image in enumerate(truth.images)}
    by_rule: Counter[str] = Counter()
    found = []
    for image, by in hits.items():
        rule = next(rule for rule in RULES if rule in by)
        if len(by[rule]) > 1:
            ids = " and ".join(f"{row['image_id']} ({row['shard']})" for row in by[rule][:2])
            raise InputError(
                f"{truth.images[image].file_name} of the annotations may be {ids}: {RULES[rule]}"
            )
        by_rule[rule] += 1
        found.append({**by[rule][0], "position": positions[image]})
    return MatchedImages(pa.Table.from_pylist(found, schema=MATCHED), dict(by_rule))


class _Names:
    """The names of annotated images, as portable names."""

    def __init__(self, truth: Annotations):
        self.by_name: defaultdict[str, list[str]] = defaultdict(list)  # name -> image ids
        self.by_stem: defaultdict[str, list[str]] = defaultdict(list)
        self.by_last: defaultdict[str, list[str]] = defaultdict(list)  # without folders
        self.images = truth.images
        self.by_row = {image.row: image.id for image in truth.images.values() if image.row}
        for image in truth.images.values():
            if image.file_name:
                name = portable_name(image.file_name)
                self.by_name[name].append(image.id)
                self.by_last[name.rpartition("/")[2]].append(image.id)
                for part in {part for stem in _stems_of(name) for part in _suffixes_of(stem)}:
                    self.by_stem[part].append(image.id)

    def wanted(self) -> set[str]:
        """Return all whole names, and the last parts of names and stems."""
        rows = (portable_name(image_id) for _, image_id in self.by_row)
        names = {*self.by_name, *self.by_stem, *self.images, *rows}
        return names | {name.rpartition("/")[2] for name in names}

    def of(self, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield (rule, id) for each rule that finds the annotated image of a row of OUTPUT.

        LAST_RULES are left to `found_by`.
        """
        exported = self.by_row.get((row["shard"], row["image_id"]))
        if exported is not None:
            yield ROW, exported
            return
        image_id, path, inside = _place_of(row)
        yield from self._first_match(IMAGE_ID, self.by_name, [image_id], row)
        yield from self._first_match(PATH, self.by_name, _paths_of(row), row)
        # rows of Parquet files have numbers, not keys
        if not (inside and path.endswith(".parquet")):
            key = image_id[len(portable_name(row["uri"])) + 1 :] if inside else image_id
            yield from self._first_match(KEY, self.by_stem, _suffixes_of(key), row)

    def found_by(self, rule: str, row: dict[str, Any]) -> str | None:
        """The id of the annotated image that one of LAST_RULES finds for a row of OUTPUT."""
        if rule == ID:
            return row["image_id"] if row["image_id"] in self.images else None
        last = [path.rpartition("/")[2] for path in _paths_of(row)]
        return next((image for _, image in self._first_match(NAME, self.by_last, last, row)), None)

    def _first_match(
        self, rule: str, names: dict[str, list[str]], called: list[str], row: dict[str, Any]
    ) -> Iterator[tuple[str, str]]:
        for name in called:
            images = names.get(name, [])
            if len(images) > 1:
                both = " and ".join(f"{self.images[i].file_name} (id {i})" for i in images[:2])
                raise InputError(
                    f"{row['image_id']} may be {both} of the annotations: {RULES[rule]}"
                )
            if images:
                yield rule, images[0]
                return


def _place_of(row: dict[str, Any]) -> tuple[str, str, bool]:
    """The image_id and the path of a row, portable, and whether it is an image in an archive."""
    image_id, uri = portable_name(row["image_id"]), portable_name(row["uri"] or "")
    path = uri.partition("?")[0] if uri.startswith(("http://", "https://")) else uri
    return image_id, path, image_id.startswith(f"{uri}#")


def _paths_of(row: dict[str, Any]) -> list[str]:
    """All names by which an image that is a file may be called; the longest first."""
    image_id, path, inside = _place_of(row)
    if inside:
        return []
    decoded = [unquote(path)] if path.startswith(("http://", "https://")) else []
    return [part for whole in (path, *decoded, image_id) for part in _suffixes_of(whole)]


def _stems_of(name: str) -> set[str]:
    """Return the stems of a file name.

    These are the name without its last suffix, and webdataset's key, which ends before the first
    dot of the last part.
    """
    folder, slash, last = name.rpartition("/")
    return {
        folder + slash + (stem or last) for stem in (last.rpartition(".")[0], last.split(".")[0])
    }


def _suffixes_of(path: str) -> list[str]:
    """Return all suffixes of a path, such as `a/b/c`, `b/c` and `c`."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _query_candidates(connection: duckdb.DuckDBPyConnection, names: _Names) -> list[dict[str, Any]]:
    wanted = pa.table({"name": pa.array(sorted(names.wanted()), pa.string())})
    connection.register("wanted", wanted)
    return connection.sql(_CANDIDATES).to_arrow_table().to_pylist()


def _describe_mismatch(connection: duckdb.DuckDBPyConnection, truth: Annotations) -> str:
    here = connection.sql("SELECT image_id FROM latest_images LIMIT 1").fetchall()
    first = next(iter(truth.images.values()))
    return (
        f"no annotated image is in OUTPUT. Of {len(truth.images)} in the annotations the first has "
        f"the file_name {first.file_name} and the id {first.id}; an image_id of OUTPUT is "
        f"{here[0][0] if here else None}. An image is known where {', or '.join(RULES.values())}"
    )
