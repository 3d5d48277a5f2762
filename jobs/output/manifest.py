"""The manifest of a run: what it labelled, and the files that hold it."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, TypedDict, cast

from jobs.output import paths
from jobs.output.documents import FORMAT, convert_document, damaged_document, refuse_newer
from pipeline.stages.publish import PartFile, PublishTarget


class FileOfRun(TypedDict):
    """A file of a table."""

    path: str  # below OUTPUT
    rows: int
    bytes: int
    sha256: str


class Manifest(TypedDict):
    """A run that is finished."""

    format: int
    run_id: str
    input: str  # canonical INPUT
    model: str
    model_fingerprint: str
    labels: list[str]  # by label_id
    images: dict[str, int]  # by status
    files: list[FileOfRun]
    replaces: list[str]  # runs that counted until this one did
    compacts: bool  # whether their labels live on in this one
    plan: str  # the name of its plan below OUTPUT


def make_manifest(
    target: PublishTarget,
    plan: str,
    source: str,
    files: Sequence[PartFile],
    counts: dict[str, int],
    replaces: Sequence[str] = (),
    compacts: bool = False,
) -> Manifest:
    """What a run over INPUT `source` wrote; runs that it `replaces` are to count no more.

    `compacts`: their labels live on in this one. `counts` are images by status.
    """
    return {
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


def manifest_to_bytes(manifest: Manifest) -> bytes:
    return json.dumps(manifest, indent=1).encode()


def manifest_of_bytes(name: str, data: bytes, sha256: str) -> Manifest:
    """A manifest, checked. DamagedOutput where it is none, or not the one of that digest."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise damaged_document(name)
    return check_manifest(name, convert_document(name, lambda: json.loads(data)))


def check_manifest(name: str, document: Any) -> Manifest:
    """A manifest of this version or an older one. DamagedOutput where it is none."""

    def convert() -> Manifest:
        run_id = document["run_id"]
        defaults = {"format": 1, "labels": [], "compacts": False}
        manifest: Any = defaults | {"plan": f"{paths.run_folder(run_id)}/plan.parquet"} | document
        refuse_newer(name, manifest["format"])
        _check(manifest)
        return cast(Manifest, manifest)

    return convert_document(name, convert)


def _check(document: dict[str, Any]) -> None:
    """AssertionError for what no writer writes: names must not lead out of OUTPUT."""
    run_id = document["run_id"]
    assert paths.is_run_id(run_id)
    assert all(isinstance(document[n], str) for n in ("input", "model", "model_fingerprint"))
    assert all(isinstance(label, str) for label in document["labels"])
    assert all(type(count) is int and count >= 0 for count in document["images"].values())
    assert all(map(paths.is_run_id, document["replaces"]))
    assert type(document["compacts"]) is bool
    assert paths.is_plan(document["plan"], run_id)
    for file in document["files"]:
        found = paths.run_and_token_of_part(file["path"])
        assert found is not None and found[0] == run_id
        assert type(file["rows"]) is int and type(file["bytes"]) is int
