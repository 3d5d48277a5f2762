"""Documents beside a manifest: run.json is written when a run starts, report.json at its end."""

import hashlib
import io
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Any, TypeVar

import pyarrow as pa

from jobs.boxes.options import choosing_values, label_words
from jobs.boxes.pairs import recorded_thresholds
from jobs.output import paths
from jobs.output.documents import (
    convert_document,
    parse_json,
    read_document_bytes,
    require,
)
from pipeline.storage.files import join, open_location, write_whole
from pipeline.storage.parquet import write_parquet

T = TypeVar("T")
PACKAGES = ("detr-batch", "ray", "torch", "torchvision", "pyarrow", "pillow", "fsspec")


def environment() -> dict[str, Any]:
    """Versions of packages and hardware of the driver."""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def write_document(output: str, run_id: str, name: str, document: dict[str, Any]) -> None:
    """Write a JSON document beside the manifest of the run."""
    write_text(output, run_id, name, json.dumps(document, indent=1))


def write_record(output: str, run_id: str, record: dict[str, Any]) -> None:
    """Write run.json beside the manifest of the run, with the digest of its content."""
    write_document(output, run_id, "run.json", {**record, "sha256": _digest(record)})


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def write_text(output: str, run_id: str, name: str, text: str) -> None:
    """Write a text file beside the manifest of the run."""
    fs, path = open_location(join(output, paths.document(run_id, name)), "OUTPUT")
    write_whole(fs, path, text.encode())


def read_document(output: str, run_id: str, name: str) -> dict[str, Any]:
    """Read a JSON document of a run; the result is without its digest.

    Raises FileNotFoundError if there is none, DamagedOutput if it is not as it was written.
    Versions before 0.2 wrote no digests.
    """
    fs, path = open_location(join(output, paths.document(run_id, name)), "OUTPUT")
    data = read_document_bytes(fs, path)

    def convert() -> dict[str, Any]:
        document = parse_json(data)
        require(isinstance(document, dict))
        digest = document.pop("sha256", None)
        require(digest is None or digest == _digest(document))
        return document

    return convert_document(paths.document(run_id, name), convert)


def value_of_record(
    output: str, run_id: str, convert: Callable[[dict[str, Any]], T], absent: T
) -> T:
    """What `convert` makes of run.json; `absent` if the run has none.

    Raises DamagedOutput if run.json, or what `convert` reads of it, is damaged.
    """
    try:
        record = read_document(output, run_id, "run.json")
    except FileNotFoundError:
        return absent
    return convert_document(paths.document(run_id, "run.json"), lambda: convert(record))


def score_threshold(output: str, run_id: str) -> float:
    """The score below which a run kept no box. 0 if run.json is missing or names no threshold.

    It is the lowest threshold of a run in which classes have their own.
    """

    def convert(record: dict[str, Any]) -> float:
        options = record.get("options", {})
        return min([float(options.get("score_threshold") or 0.0), *recorded_thresholds(options)])

    return value_of_record(output, run_id, convert, 0.0)


def choosing_options(output: str, run_id: str) -> str:
    """The options of a run that chose its boxes and tiles, as a user types them."""
    return value_of_record(
        output, run_id, lambda record: " ".join(label_words(record.get("options", {}))), ""
    )


def recorded_choices(output: str, run_id: str) -> dict[str, str | float]:
    """The recorded options that decide which boxes a run has, by field; none that is at default.

    The general threshold is always among them.
    """

    def convert(record: dict[str, Any]) -> dict[str, str | float]:
        options = record.get("options", {})
        own = {name: options.get(name) for name in ("model", "weights", "score_threshold")}
        found = own | choosing_values(options)
        return {name: value for name, value in found.items() if value is not None}

    nothing: dict[str, str | float] = {}
    return value_of_record(output, run_id, convert, nothing)


def computations(output: str, run_id: str) -> list[str]:
    """What decided the bits of a run's labels beside image and weights (model/computation.py).

    Several if its detectors were of several kinds, or if `compact` made it of such runs. None if
    the run is of a version before 0.2, or imported. Raises DamagedOutput.
    """

    def convert(record: dict[str, Any]) -> list[str]:
        if "compacts" in record:
            own = [computations(output, str(one)) for one in record["compacts"]]
            return sorted({text for texts in own for text in texts})
        text = (record.get("computation") or {}).get("text")
        return [] if text is None else [str(text)]

    nothing: list[str] = []
    planned = value_of_record(output, run_id, convert, nothing)
    with suppress(FileNotFoundError):  # of a run that is not finished, or that `compact` made
        found = read_document(output, run_id, "report.json").get("computations")
        return sorted(found) or planned if isinstance(found, dict) else planned
    return planned


def write_table(url: str, table: pa.Table) -> None:
    """Write a table to `url` as Parquet, whole or not at all."""
    buffer = io.BytesIO()
    write_parquet(buffer, table.schema, [table])
    fs, path = open_location(url, "OUTPUT")
    write_whole(fs, path, buffer.getvalue())
