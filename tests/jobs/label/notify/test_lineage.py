"""Events are OpenLineage's: the classes of its own client take them, and know their schemas."""

from datetime import UTC, datetime
from typing import Any

import attr
import pytest
from openlineage.client import event_v2
from openlineage.client.event_v2 import RunEvent, RunState
from openlineage.client.facet_v2 import (
    BaseFacet,
    RunFacet,
    error_message_run,
    input_statistics_input_dataset,
    job_type_job,
    output_statistics_output_dataset,
    processing_engine_run,
    schema_dataset,
)
from openlineage.client.naming import dataset as naming

from jobs.label.notify.announced_run import AnnouncedRun
from jobs.label.notify.lineage import dataset_name, run_event, run_uuid
from tests.jobs.label.notify.facts import RUN_ID, begun_run, failed_run, published_run

SOURCE, OUTPUT = "s3://lake/photos", "s3://lake/labels"
NOW = datetime(2026, 1, 1, 2, 3, 4, tzinfo=UTC)
FACETS: dict[str, type[BaseFacet]] = {
    "processing_engine": processing_engine_run.ProcessingEngineRunFacet,
    "errorMessage": error_message_run.ErrorMessageRunFacet,
    "jobType": job_type_job.JobTypeJobFacet,
    "inputStatistics": input_statistics_input_dataset.InputStatisticsInputDatasetFacet,
    "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
    "schema": schema_dataset.SchemaDatasetFacet,
}


def facet(name: str, fields: dict[str, Any]) -> BaseFacet:
    """The client's facet. It refuses unknown fields, and its schema is that of the event."""
    given = {key: value for key, value in fields.items() if not key.startswith("_")}
    if name == "detrBatch_run":
        made: BaseFacet = RunFacet().with_additional_properties(**given)
    else:
        made = FACETS[name](**given)
    assert fields["_schemaURL"] == made._schemaURL
    assert fields["_producer"].startswith("urn:detr-batch:")
    return made


def facets(given: dict[str, Any]) -> dict[str, Any]:
    return {name: facet(name, fields) for name, fields in given.items()}


def read_event(event: dict[str, Any]) -> RunEvent:
    """The client's event. It refuses unknown fields, and ids and times that are none."""
    run, job = event["run"], event["job"]
    made = RunEvent(
        eventTime=event["eventTime"],
        producer=event["producer"],
        eventType=RunState(event["eventType"]),
        run=event_v2.Run(**{**run, "facets": facets(run["facets"])}),
        job=event_v2.Job(**{**job, "facets": facets(job["facets"])}),
        inputs=[
            event_v2.InputDataset(
                **{
                    **one,
                    "facets": facets(one["facets"]),
                    "inputFacets": facets(one["inputFacets"]),
                }
            )
            for one in event["inputs"]
        ],
        outputs=[
            event_v2.OutputDataset(
                **{
                    **one,
                    "facets": facets(one["facets"]),
                    "outputFacets": facets(one["outputFacets"]),
                }
            )
            for one in event["outputs"]
        ],
    )
    assert event["schemaURL"] == made.schemaURL
    assert event.keys() <= {field.name for field in attr.fields(RunEvent)}
    return made


def event_of(run: AnnouncedRun) -> RunEvent:
    return read_event(run_event(SOURCE, OUTPUT, run, NOW))


@pytest.mark.parametrize(
    ("run", "state"),
    [
        (begun_run(), "START"),
        (published_run(), "COMPLETE"),
        (failed_run("no space"), "FAIL"),
        (failed_run("interrupted", True), "ABORT"),
    ],
)
def test_each_state_of_a_run_is_an_event(run: AnnouncedRun, state: str) -> None:
    event = event_of(run)
    assert event.eventType == RunState(state)
    assert event.run.runId == run_uuid(OUTPUT, RUN_ID) != run_uuid("s3://lake/other", RUN_ID)
    assert (event.job.namespace, event.job.name) == ("detr-batch", "label s3://lake/labels")
    assert [(one.namespace, one.name) for one in event.inputs or ()] == [("s3://lake", "photos")]
    tables = [(one.namespace, one.name) for one in event.outputs or ()]
    assert tables == [("s3://lake", "labels/images"), ("s3://lake", "labels/detections")]


def test_a_complete_run_has_fingerprint_cost_and_counts() -> None:
    event = run_event(SOURCE, OUTPUT, published_run(resumed=True), NOW)
    own = event["run"]["facets"]["detrBatch_run"]
    assert (own["run_id"], own["resumed"]) == (RUN_ID, True)
    assert own["model_fingerprint"] == "0123456789abcdef"
    assert own["images"] == {"ok": 5, "undecodable": 1}
    assert (own["detections"], own["usd"]) == (9, pytest.approx(7.2))
    found = event_of(published_run()).outputs or []
    statistics: list[Any] = [(one.outputFacets or {})["outputStatistics"] for one in found]
    assert [(s.rowCount, s.size, s.fileCount) for s in statistics] == [(6, 600, 1), (9, 300, 3)]


def test_a_failed_run_says_why_and_what_it_cost() -> None:
    own = run_event(SOURCE, OUTPUT, failed_run("no space"), NOW)["run"]["facets"]
    assert own["errorMessage"]["message"] == "no space"
    assert own["detrBatch_run"]["usd"] == 0.5
    assert own["detrBatch_run"]["images"] == {"ok": 1, "truncated": 1}


def test_the_namespace_of_the_job_comes_from_the_variable_of_its_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "nightly")
    assert event_of(begun_run()).job.namespace == "nightly"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://lake/a/b", naming.S3("lake", "a/b")),
        ("gcs://lake/a", naming.GCS("lake", "a")),
        ("abfs://box/a", naming.ABFSS("box", "acct", "a")),
        ("file:///data/a#b?c", naming.LocalFileSystem("/data/a#b?c")),
    ],
)
def test_datasets_are_named_by_the_rules_of_the_specification(
    url: str, expected: naming.DatasetNaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acct")
    assert dataset_name(url) == (expected.get_namespace(), expected.get_name())


def test_a_whole_bucket_has_a_name() -> None:
    assert dataset_name("s3://lake") == ("s3://lake", "/")
