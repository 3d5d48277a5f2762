"""The manifest of a run: its model, its image counts, and the files of its tables."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict, cast

from jobs.output import paths
from jobs.output.documents import (
    FORMAT,
    convert_document,
    damaged_document,
    parse_json,
    refuse_newer,
    require,
)
from pipeline.carry.columns import NO_CARRY, Carry, carry_of_document, sql_key
from pipeline.schema import IMAGES
from pipeline.stages.publish import PartFile, PublishTarget


class FileOfRun(TypedDict):
    """One file of a table."""

    path: str  # below OUTPUT
    rows: int
    bytes: int
    sha256: str


class Manifest(TypedDict):
    """The manifest of a finished run."""

    format: int
    run_id: str
    input: str  # canonical URL of INPUT
    model: str
    model_fingerprint: str
    labels: list[str]  # class names by label_id
    images: dict[str, int]  # number of images by status
    files: list[FileOfRun]
    replaces: list[str]  # ids of the runs that this run replaced
    compacts: bool  # whether this run holds the labels of the replaced runs
    plan: str  # name of the plan below OUTPUT
    # The columns of INPUT that `images` has behind its own: their types by name. Absent if none.
    carried: NotRequired[dict[str, str]]


def make_manifest(
    target: PublishTarget,
    plan: str,
    source: str,
    files: Sequence[PartFile],
    counts: dict[str, int],
    replaces: Sequence[str] = (),
    compacts: bool = False,
    carry: Carry = NO_CARRY,
) -> Manifest:
    """The manifest of a run over INPUT `source`.

    `counts` is the number of images by status. The runs in `replaces` count no more once this run
    is committed. `compacts` says that this run holds the labels of the replaced runs, and `carry`
    which columns of INPUT its images have.
    """
    manifest: Manifest = {
        "format": FORMAT,
        "run_id": target.run_id,
        "input": source,
        "model": target.model,
        "model_fingerprint": target.fingerprint,
        "labels": list(target.labels),
        "images": counts,
        "files": [
            {"path": one.path, "rows": one.rows, "bytes": one.bytes, "sha256": one.sha256}
            for one in files
        ],
        "replaces": list(replaces),
        "compacts": compacts,
        "plan": plan,
    }
    if carry:
        manifest["carried"] = carry.as_document()
    return manifest


def carry_of_run(run: Manifest) -> Carry:
    """The columns of INPUT that the images of a run have."""
    return carry_of_document(run.get("carried", {}))


def files_of_table(run: Manifest, table: str) -> list[FileOfRun]:
    """The files of a run that hold rows of a table."""
    return [file for file in run["files"] if paths.table_of_part(file["path"]) == table]


def manifest_to_bytes(manifest: Manifest) -> bytes:
    return json.dumps(manifest, indent=1).encode()


def manifest_of_bytes(name: str, data: bytes, sha256: str) -> Manifest:
    """Parse and check a manifest. Raises DamagedOutput if it is none, or has another digest."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise damaged_document(name)
    return check_manifest(name, convert_document(name, lambda: parse_json(data)))


def check_manifest(name: str, document: Any) -> Manifest:
    """Check a manifest of this or an older version. Raises DamagedOutput if it is no manifest."""

    def convert() -> Manifest:
        run_id = document["run_id"]
        defaults = {"format": 1, "labels": [], "compacts": False}
        manifest: Any = defaults | {"plan": f"{paths.run_folder(run_id)}/plan.parquet"} | document
        refuse_newer(name, manifest["format"])
        _check(manifest)
        return cast(Manifest, manifest)

    return convert_document(name, convert)


def _check(document: dict[str, Any]) -> None:
    """Raise ValueError for fields that no writer writes. Names must not lead out of OUTPUT."""
    run_id = document["run_id"]
    require(paths.is_run_id(run_id))
    require(all(isinstance(document[n], str) for n in ("input", "model", "model_fingerprint")))
    require(all(isinstance(label, str) for label in document["labels"]))
    require(all(type(count) is int and count >= 0 for count in document["images"].values()))
    require(all(map(paths.is_run_id, document["replaces"])))
    require(type(document["compacts"]) is bool)
    require(paths.is_plan(document["plan"], run_id))
    carried = carry_of_document(document.get("carried", {}))
    names = [sql_key(column.name) for column in carried.columns]
    require(not set(names) & set(IMAGES.names) and len(set(names)) == len(names))
    for file in document["files"]:
        found = paths.run_and_token_of_part(file["path"])
        require(found is not None and found[0] == run_id)
        require(type(file["rows"]) is int and type(file["bytes"]) is int)
