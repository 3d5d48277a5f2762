"""`detr-batch runs`: list the runs of an OUTPUT, show or delete one, verify all."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.accounting.plurals import counted
from jobs.output import paths
from jobs.output.catalog import committed_runs
from jobs.output.documents import FORMAT
from jobs.output.manifest import FileOfRun, Manifest, carry_of_run, files_of_table
from jobs.output.output_writer import OutputWriter
from jobs.output.run_documents import read_document
from jobs.output.user_errors import refuse_no_output, unusable_run
from jobs.output.views import finished_runs
from pipeline.schema import DETECTIONS, OK, images_schema
from pipeline.storage.files import join, open_location, open_object

HASHED_AT_ONCE = 8 << 20  # bytes


class Problem(TypedDict):
    """A fault of a file of a run."""

    run_id: str
    path: str  # path below OUTPUT; a table's name for the sum over its files
    what: str


def list_runs(output: str) -> list[dict[str, Any]]:
    """List the runs that count, oldest first."""
    return [
        {
            "run_id": run["run_id"],
            "input": run["input"],
            "model": run["model"],
            "images": sum(run["images"].values()),
            "failed": sum(run["images"].values()) - run["images"].get(OK, 0),
            "detections": _count_rows(run, "detections"),
            "files": len(run["files"]),
            "bytes": sum(file["bytes"] for file in run["files"]),
            "compacts": len(run["replaces"]) if run["compacts"] else 0,
        }
        for run in finished_runs(output)
    ]


def as_text(runs: list[dict[str, Any]]) -> str:
    """Describe the list for people."""
    lines = [
        f"{'run':<24} {'images':>10} {'failed':>8} {'detections':>11} {'files':>6} {'MB':>9}  "
        "model, INPUT"
    ]
    for run in runs:
        made_of = f" (of {run['compacts']} runs)" if run["compacts"] else ""
        lines.append(
            f"{run['run_id']:<24} {run['images']:>10} {run['failed']:>8} {run['detections']:>11} "
            f"{run['files']:>6} {run['bytes'] / 1e6:>9.2f}  {run['model']}, {run['input']}{made_of}"
        )
    return "\n".join(lines)


def problems_as_text(problems: list[Problem]) -> str:
    """Describe the result of `verify` for people."""
    lines = [f"{one['run_id']} {one['path']}: {one['what']}" for one in problems]
    summary = counted(len(lines), "problem") if lines else "all files are as they were written"
    return "\n".join([*lines, summary])


def describe_run(output: str, run_id: str) -> dict[str, Any]:
    """Return all that is recorded of one run: its manifest, and run.json."""
    manifest = _find_manifest(output, run_id)
    return {"manifest": manifest, "run": read_document(output, run_id, "run.json")}


def delete(
    output: str, run_id: str, confirm: Callable[[str], bool], single_writer: bool = False
) -> str | None:
    """Remove a run's labels, so that the next `label` makes them again; return what was done.

    `confirm` is called with a description of what would be lost; None if it says no. InputError
    for an unknown run.
    """
    with OutputWriter(output, single_writer) as writer:
        manifest = _find_manifest(output, run_id)
        images = sum(manifest["images"].values())
        boxes = _count_rows(manifest, "detections")
        lost = f"run {run_id} over {manifest['input']}: {images} images, {boxes} detections"
        if not confirm(lost):
            return None
        writer.commit(None, [run_id], "deleted")
    return f"deleted {lost}"


def verify(output: str) -> list[Problem]:
    """Find files that count and are absent, altered, or unlike their manifest.

    Raises InputError for a place that is no OUTPUT.
    """
    refuse_no_output(output)
    return [problem for run in committed_runs(output) for problem in find_problems(output, run)]


def find_problems(output: str, run: Manifest) -> Iterator[Problem]:
    """Find files of one run that are absent, altered, or unlike its manifest."""
    statuses: dict[str, int] = {}
    boxes = 0
    for file in run["files"]:
        is_images = paths.table_of_part(file["path"]) == "images"
        schema = images_schema(carry_of_run(run)) if is_images else DETECTIONS
        if run["format"] < FORMAT:
            schema = schema.remove(schema.get_field_index("run_id"))
        try:
            what, table = _check_file(output, file, schema)
        except FileNotFoundError:
            what, table = "it is not there", None
        except (pa.ArrowException, OSError) as error:
            what, table = f"it cannot be read: {error}", None
        if what:
            yield Problem(run_id=run["run_id"], path=file["path"], what=what)
        if table is not None and is_images:
            boxes += pc.sum(table["num_detections"]).as_py() or 0
            for status in table["status"].value_counts().to_pylist():
                name = status["values"]
                statuses[name] = statuses.get(name, 0) + status["counts"]
    if statuses != run["images"]:
        yield Problem(run_id=run["run_id"], path="images", what=f"rows by status are {statuses}")
    if boxes != _count_rows(run, "detections"):
        yield Problem(
            run_id=run["run_id"], path="detections", what=f"`images` counts {boxes} boxes"
        )


def _check_file(
    output: str, file: FileOfRun, schema: pa.Schema
) -> tuple[str | None, pa.Table | None]:
    """Return what is wrong with one file, and for `images` the columns that are counted."""
    fs, path = open_location(join(output, file["path"]), "OUTPUT")
    with open_object(fs, path) as content:
        digest = hashlib.sha256()
        while piece := content.read(HASHED_AT_ONCE):
            digest.update(piece)
        if digest.hexdigest() != file["sha256"]:
            return "its bytes are not those that were written (sha256)", None
        content.seek(0)
        parquet = pq.ParquetFile(content)
        rows = parquet.metadata.num_rows
        if not parquet.schema_arrow.equals(schema):
            return "its columns are not those of the table", None
        if rows != file["rows"]:
            return f"{rows} rows where {file['rows']} were written", None
        counted = parquet.read(["status", "num_detections"]) if "status" in schema.names else None
        return None, counted


def _find_manifest(output: str, run_id: str) -> Manifest:
    for run in finished_runs(output):
        if run["run_id"] == run_id:
            return run
    raise unusable_run(output, run_id)


def _count_rows(run: Manifest, table: str) -> int:
    return sum(file["rows"] for file in files_of_table(run, table))
