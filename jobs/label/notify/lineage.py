"""OpenLineage events of a run: START when it begins, then COMPLETE, FAIL or ABORT.

The events follow https://openlineage.io/spec/2-0-2/OpenLineage.json. A run that is resumed is the
same run there too: it starts again, under the same id.
"""

import os
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from jobs.label.notify.announced_run import FAILED, INTERRUPTED, PUBLISHED, RUNNING, AnnouncedRun
from jobs.output import paths
from pipeline.schema import DETECTIONS, IMAGES
from pipeline.storage.files import join
from pipeline.storage.url_parts import AZURE

SPEC = "https://openlineage.io/spec"
EVENT = f"{SPEC}/2-0-2/OpenLineage.json#/$defs"
NAMESPACE = "OPENLINEAGE_NAMESPACE"  # the variable that clients of OpenLineage read
TYPES = {RUNNING: "START", PUBLISHED: "COMPLETE", FAILED: "FAIL", INTERRUPTED: "ABORT"}
SCHEMAS = {"images": IMAGES, "detections": DETECTIONS}
# Fields of report.json that our facet has, beside the images by status.
FIGURES = (
    "detections", "wall_seconds", "images_per_second", "images_per_second_steady", "node_hours",
    "usd", "usd_per_1000_images", "price_basis",
)  # fmt: skip


def run_event(source: str, output: str, run: AnnouncedRun, now: datetime) -> dict[str, Any]:
    """The event of what a run has come to. `source` and `output` are canonical URLs."""
    facets = {
        "processing_engine": _facet(
            "facets/1-1-1/ProcessingEngineRunFacet.json#/$defs/ProcessingEngineRunFacet",
            name="detr-batch",
            version=version("detr-batch"),
        ),
        "detrBatch_run": _own_facet(run),
    }
    if run.error is not None:
        facets["errorMessage"] = _facet(
            "facets/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet",
            message=run.error,
            programmingLanguage="python",
        )
    return {
        "eventTime": now.astimezone(UTC).isoformat(timespec="milliseconds"),
        "producer": _producer(),
        "schemaURL": f"{EVENT}/RunEvent",
        "eventType": TYPES[run.state],
        "run": {"runId": run_uuid(output, run.run_id), "facets": facets},
        "job": _job(output),
        "inputs": [_input(source, run)],
        "outputs": [_table(output, table, run) for table in paths.TABLES],
    }


def run_uuid(output: str, run_id: str) -> str:
    """The id of a run in OpenLineage. It follows from OUTPUT and the run id."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, join(output, paths.run_folder(run_id))))


def dataset_name(url: str) -> tuple[str, str]:
    """The namespace and the name of the dataset at a canonical URL, by OpenLineage's rules."""
    protocol, _, rest = url.partition("://")
    if protocol == "file":
        return "file", rest or "/"
    store, _, path = rest.partition("/")
    if protocol in AZURE:
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        if "@" not in store and account:
            store = f"{store}@{account}.dfs.core.windows.net"
        protocol = "abfss"
    protocol = {"s3a": "s3", "gcs": "gs"}.get(protocol, protocol)
    return f"{protocol}://{store}", path.strip("/") or "/"


def _producer() -> str:
    return f"urn:detr-batch:{version('detr-batch')}"


def _facet(schema: str, **fields: Any) -> dict[str, Any]:
    return {"_producer": _producer(), "_schemaURL": f"{SPEC}/{schema}", **fields}


def _own_facet(run: AnnouncedRun) -> dict[str, Any]:
    """What made the labels, how many there are, and what they cost. Absent figures are not known.

    Its schema is that of all facets of runs, because ours is published nowhere.
    """
    return _facet(
        "2-0-2/OpenLineage.json#/$defs/RunFacet",
        run_id=run.run_id,
        resumed=run.resumed,
        model=run.model,
        model_fingerprint=run.fingerprint,
        computation=run.computation,
        images=dict(run.images()),
        **{name: run.figures[name] for name in FIGURES if run.figures.get(name) is not None},
    )


def _job(output: str) -> dict[str, Any]:
    kind = _facet(
        "facets/2-0-4/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
        processingType="BATCH",
        integration="DETR_BATCH",
        jobType="COMMAND",
    )
    return {
        "namespace": os.environ.get(NAMESPACE) or "detr-batch",
        "name": f"label {output}",
        "facets": {"jobType": kind},
    }


def _input(source: str, run: AnnouncedRun) -> dict[str, Any]:
    namespace, name = dataset_name(source)
    statistics = _facet(
        "facets/1-0-0/InputStatisticsInputDatasetFacet.json#/$defs/InputStatisticsInputDatasetFacet",
        size=run.encoded_bytes,
        fileCount=run.objects,
    )
    return {
        "namespace": namespace,
        "name": name,
        "facets": {},
        "inputFacets": {"inputStatistics": statistics},
    }


def _table(output: str, table: str, run: AnnouncedRun) -> dict[str, Any]:
    """The output dataset of one table. What a run wrote is known once it is published."""
    namespace, name = dataset_name(join(output, table))
    dataset: dict[str, Any] = {
        "namespace": namespace,
        "name": name,
        "facets": {"schema": _schema(SCHEMAS[table])},
        "outputFacets": {},
    }
    if run.state == PUBLISHED:
        files = [file for file in run.files if paths.table_of_part(file.path) == table]
        dataset["outputFacets"]["outputStatistics"] = _facet(
            "facets/1-0-2/OutputStatisticsOutputDatasetFacet.json"
            "#/$defs/OutputStatisticsOutputDatasetFacet",
            rowCount=sum(file.rows for file in files),
            size=sum(file.bytes for file in files),
            fileCount=len(files),
        )
    return dataset


def _schema(schema: pa.Schema) -> dict[str, Any]:
    columns = [{"name": field.name, "type": str(field.type)} for field in schema]
    return _facet("facets/1-2-0/SchemaDatasetFacet.json#/$defs/SchemaDatasetFacet", fields=columns)
