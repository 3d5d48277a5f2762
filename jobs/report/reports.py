"""The manifests and report.json of committed runs."""

from contextlib import suppress
from typing import Any

from jobs.output import paths
from jobs.output.catalog import committed_runs, read_catalog
from jobs.output.documents import damaged_document
from jobs.output.errors import DamagedOutput
from jobs.output.manifest import Manifest
from jobs.output.run_documents import read_document
from jobs.output.user_errors import unusable_run
from jobs.output.views import finished_runs
from jobs.report.imported import MADE_UP, read_import
from pipeline.storage.files import InputError


def manifest_of(output: str, run_id: str | None = None) -> Manifest:
    """Return the manifest of a run that counts: the newest, unless `run_id` names one.

    InputError if there is no such run.
    """
    runs = labelling_runs(output)
    if run_id is None:
        return runs[-1]
    for run in runs:
        if run["run_id"] == run_id:
            return run
    made = next((run for run in committed_runs(output) if run["run_id"] == run_id), None)
    if made is not None:
        own = [run["run_id"] for run in runs if run["run_id"] in made["replaces"]] or [
            runs[-1]["run_id"]
        ]
        raise InputError(
            f"--run {run_id}: `compact` made this run, so it has no figures of its own; those of "
            f"the runs that it was made of stay: --run {' or '.join(own[-5:])}"
        )
    raise unusable_run(output, run_id, "--run")


def with_tables(output: str, run_id: str | None = None) -> Manifest:
    """Return the manifest of a run that has tables of its own; `compact` may have made it.

    InputError if `compact` has merged the run's tables into those of another run.
    """
    if run_id is None:
        run_id = manifest_of(output)["run_id"]
    for run in committed_runs(output):
        if run["run_id"] == run_id:
            return run
    raise unusable_run(output, run_id, "--run")


def labelling_runs(output: str) -> list[Manifest]:
    """The runs of `label` and `import`, oldest first. InputError if there are none."""
    # Without any run, `finished_runs` raises the InputError that says so.
    return read_catalog(output).labelling_runs() or finished_runs(output)


def report_of(output: str, run_id: str | None = None) -> dict[str, Any]:
    """Return report.json of one run (see `jobs.accounting.tally.Report`), with its `run_id`."""
    return read_report(output, manifest_of(output, run_id)["run_id"])


def read_report(output: str, run_id: str) -> dict[str, Any]:
    """Read report.json of a run. Raises DamagedOutput if it is missing or damaged.

    The report of imported detections has `imported`, and no rate and no use of devices.
    """
    try:
        report = {"run_id": run_id, **read_document(output, run_id, "report.json")}
    except FileNotFoundError as error:
        raise damaged_document(paths.document(run_id, "report.json")) from error
    # Every run of `label` has node-hours, so that its run.json need not be read.
    if not report.get("node_hours") and read_import(output, run_id) is not None:
        report |= {"imported": True, **dict.fromkeys(MADE_UP)}
    return report


def past_reports(output: str, fingerprint: str, count: int) -> list[dict[str, Any]]:
    """Read the reports of the newest `count` runs of a model, oldest first.

    Missing and damaged reports are left out: estimates are made of those that are there, and a run
    must not be refused for lack of an estimate.
    """
    ids = [
        run["run_id"]
        for run in read_catalog(output).labelling_runs()
        if run["model_fingerprint"] == fingerprint
    ]
    found = []
    for run_id in ids[-count:]:
        with suppress(DamagedOutput):
            found.append(read_report(output, run_id))
    return found
