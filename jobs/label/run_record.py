"""run.json and the plan of an unfinished run. A rerun of the command resumes from them."""

import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.accounting.estimate import Estimate
from jobs.boxes.options import label_words
from jobs.label.planning import PlanRequest, Run, plan_url
from jobs.output import paths
from jobs.output.errors import DamagedOutput
from jobs.output.known_objects import LabelRequest
from jobs.output.run_documents import environment, read_document, write_record, write_table
from model.computation import Computation
from pipeline.formats.read import NUMBERING
from pipeline.plan.carry_choice import parse_carry
from pipeline.plan.shards import Shards
from pipeline.storage.files import join

_NAMES = {  # options that a record must have
    "input", "output", "model", "weights", "score_threshold", "format", "limit", "relabel",
}  # fmt: skip


def write_run_record(
    output: str,
    run: Run,
    options: Mapping[str, Any],
    fingerprint: str,
    computation: Computation,
    gone: pa.Array,
    estimate: Estimate | None,
    committed: int,
) -> None:
    """Write run.json, the plan, and a table of the objects that are `gone` from INPUT.

    `options` are the options of the command, without secrets. `committed` is the number of runs
    that were ever committed before this one was planned.
    """
    record: dict[str, Any] = {
        "run_id": run.run_id,
        "options": dict(options),
        "model_fingerprint": fingerprint,
        "computation": {**asdict(computation), "text": computation.as_text()},
        "started_at": time.time(),
        "gone": len(gone),
        "estimate": estimate,
        "committed_before": committed,
        "left_out": run.left_out,
        "numbering": NUMBERING,
        "image_columns": run.image_columns,
        "canaries": run.canaries,
        **environment(),
    }
    if len(gone):
        url = join(output, paths.document(run.run_id, "gone.parquet"))
        write_table(url, pa.table({"uri": gone}))
    write_record(output, run.run_id, record)
    run.shards.write_to(plan_url(output, run.run_id))


def read_run_record(output: str, run_id: str) -> dict[str, Any]:
    """Read run.json of an unfinished run.

    Raises DamagedOutput if it is missing, damaged, or lacks options that the run needs.
    """
    try:
        record = read_document(output, run_id, "run.json")
    except (FileNotFoundError, DamagedOutput) as error:  # it is written before the plan
        raise unusable_run_error(run_id, paths.document(run_id, "run.json")) from error
    options = record.get("options")
    known = isinstance(options, dict) and options.keys() >= _NAMES
    if "model_fingerprint" not in record or not known:
        raise unusable_run_error(run_id, paths.document(run_id, "run.json"))
    return record


def unusable_run_error(run_id: str, name: str) -> DamagedOutput:
    """The error for an unfinished run that cannot be resumed without its document `name`."""
    return DamagedOutput(
        f"{name} of OUTPUT is damaged or missing: put back what was there, or delete "
        f"{paths.staging(run_id)} of OUTPUT, and the same command plans anew. What is staged of "
        "that run is lost then; nothing that is published is"
    )


def is_same_work(record: Mapping[str, Any], wanted: PlanRequest, labels: LabelRequest) -> bool:
    """Whether a recorded run labels the same images with the same model.

    A command without --retry-failed finishes a run with it, and the other way round: both label
    what is new, and a schedule is not held up by what a person tried by hand.
    """
    options = record["options"]
    return bool(
        record["model_fingerprint"] == labels.fingerprint
        and options["input"] == labels.source
        and options["format"] == wanted.format
        and options["limit"] == wanted.limit
        and options.get("image_column") == wanted.image_column
        and options.get("id_column") == wanted.id_column
        and parse_carry(options.get("carry")) == parse_carry(wanted.carry)
        and options["relabel"] == labels.relabel
        and wanted.device in ("auto", recorded_computation(record, "device"))
        and wanted.precision in ("auto", recorded_computation(record, "precision"))
        and record.get("canaries") == wanted.canaries  # they prove a run from its first block on
    )


def recorded_computation(record: Mapping[str, Any], name: str) -> str:
    """The "device" or "precision" of a recorded run, which it keeps to its end.

    Versions before 0.2 recorded only what the command asked for, which may be "auto".
    """
    found = record.get("computation") or record["options"]
    return str(found.get(name, "auto"))


def is_numbered_otherwise(record: Mapping[str, Any], shards: Shards) -> bool:
    """Whether a recorded run took other rows of its archives than this version would."""
    has_archives = pc.any(pc.not_equal(shards.outline["kind"], "files")).as_py()
    return bool(has_archives) and record.get("numbering", 1) != NUMBERING


def recorded_command(record: Mapping[str, Any]) -> str:
    """A recorded command as a user types it, with the options that decide what is labelled."""
    given = record["options"]
    words = [given["input"], given["output"], "--model", given["model"]]
    words += ["--weights", given["weights"]] if given["weights"] else []
    words += ["--score-threshold", str(given["score_threshold"]), *label_words(given)]
    for name in ("device", "precision"):
        value = recorded_computation(record, name)
        words += [f"--{name}", value] if value != "auto" else []
    words += ["--format", given["format"]] if given["format"] != "auto" else []
    for name in ("image_column", "id_column", "carry", "input_access", "canaries"):
        value = given.get(name)
        words += [f"--{name.replace('_', '-')}", shlex.quote(value)] if value else []
    words += ["--limit", str(given["limit"])] if given["limit"] is not None else []
    for name in ("retry_failed", "renew_canaries"):
        words += [f"--{name.replace('_', '-')}"] if given.get(name) else []
    return " ".join([*words, *(["--relabel"] if given["relabel"] else [])])
