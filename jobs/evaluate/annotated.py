"""Match the images and classes of an OUTPUT with those of an annotation file."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from jobs.coco.records import Annotations
from pipeline.storage.files import InputError

# Rules that match an image of OUTPUT with its annotations, the surest rule first.
RULES = {
    "image_id": "its image_id is the file_name",
    "path": "its path ends in the file_name",
    "key": "its key in an archive is the file_name without suffix",
    "id": "its image_id is the annotations' id",
}
IMAGE_ID, PATH, KEY, ID = RULES
MATCHED = pa.schema(
    [
        pa.field("run", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("status", pa.string()),
        pa.field("position", pa.int64()),  # position among the annotated images
    ]
)
# `wanted` may name whole ids, and the last parts of paths and keys.
_CANDIDATES = r"""
SELECT run, shard, image_id, uri, status FROM latest_images
WHERE image_id IN (FROM wanted)
    OR regexp_extract(image_id, '[^/#]*$') IN (FROM wanted)
    OR regexp_extract(regexp_replace(uri, '^(https?://[^?]*)\?.*', '\1'), '[^/]*$') IN (FROM wanted)
"""


@dataclass(frozen=True)
class MatchedImages:
    """Annotated images that OUTPUT holds."""

    table: pa.Table  # columns of MATCHED
    by_rule: dict[str, int]  # number of images that each rule of RULES found


@dataclass(frozen=True)
class MatchedClasses:
    """Labels of OUTPUT that are classes of the annotations."""

    rule: str  # "name" or "id"
    ids: dict[tuple[int, str], int]  # (label_id, label) -> category id
    unknown: list[str]  # labels that are no class of the annotations


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
    if not hits:
        for row in rows:
            if row["image_id"] in truth.images:
                hits[row["image_id"]].setdefault(ID, []).append(row)
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
    """The names of annotated images."""

    def __init__(self, truth: Annotations):
        self.by_name: defaultdict[str, list[str]] = defaultdict(list)  # name -> image ids
        self.by_stem: defaultdict[str, list[str]] = defaultdict(list)
        self.images = truth.images
        for image in truth.images.values():
            if image.file_name:
                self.by_name[image.file_name].append(image.id)
                stems = _stems_of(image.file_name)
                for part in {part for stem in stems for part in _suffixes_of(stem)}:
                    self.by_stem[part].append(image.id)

    def wanted(self) -> set[str]:
        """Return all whole names, and the last parts of names and stems."""
        names = {*self.by_name, *self.by_stem, *self.images}
        return names | {name.rpartition("/")[2] for name in names}

    def of(self, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield (rule, id) for each rule that finds the annotated image of a row of OUTPUT."""
        image_id, uri = row["image_id"], row["uri"] or ""
        inside = image_id.startswith(f"{uri}#")  # the image is in an archive
        yield from self._first_match(IMAGE_ID, self.by_name, [image_id], row)
        path = uri.partition("?")[0] if uri.startswith(("http://", "https://")) else uri
        paths = [] if inside else [*_suffixes_of(path), *_suffixes_of(image_id)]
        yield from self._first_match(PATH, self.by_name, paths, row)
        key = image_id[len(uri) + 1 :] if inside else image_id
        # rows of Parquet files have numbers, not keys
        if not (inside and path.endswith(".parquet")):
            yield from self._first_match(KEY, self.by_stem, _suffixes_of(key), row)

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


def matched_classes(connection: duckdb.DuckDBPyConnection, truth: Annotations) -> MatchedClasses:
    """Match labels with categories by name, ignoring case, or by number if no name matches.

    InputError if neither matches, or if two categories have one name.
    """
    labels: list[tuple[int, str]] = connection.sql(
        "SELECT DISTINCT label_id, coalesce(label, '') FROM latest ORDER BY ALL"
    ).fetchall()
    named: defaultdict[str, list[int]] = defaultdict(list)
    for class_id, name in truth.classes.items():
        named[name.casefold()].append(class_id)
    rule = "name"
    found = {label: named[label[1].casefold()] for label in labels if label[1].casefold() in named}
    for (_, name), classes in found.items():
        if len(classes) > 1:
            raise InputError(f"the categories {classes[0]} and {classes[1]} are both called {name}")
    if not found:
        rule = "id"
        found = {label: [label[0]] for label in labels if label[0] in truth.classes}
    if labels and not found:
        raise InputError(
            f"no class of OUTPUT ({_list_names([name for _, name in labels])}) is one of the "
            f"annotations ({_list_names(list(truth.classes.values()))}), by name or by number"
        )
    return MatchedClasses(
        rule,
        {label: classes[0] for label, classes in found.items()},
        sorted(
            {name or f"number {number}" for number, name in labels if (number, name) not in found}
        ),
    )


def _list_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
