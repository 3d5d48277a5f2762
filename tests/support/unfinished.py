"""Runs as a killed `label` leaves them, and how the next command takes them up."""

from dataclasses import replace

import pyarrow as pa

from jobs.label.options import DEFAULT_MODEL, LabelOptions
from jobs.label.planning import Run, make_run, plan_images, plan_request
from jobs.label.run_record import write_run_record
from jobs.label.unfinished import take_up_unfinished_run
from jobs.output.catalog import read_catalog
from jobs.output.known_objects import LabelRequest
from jobs.output.output_writer import OutputWriter
from model.computation import Computation
from pipeline.plan.digests import NOTHING_KNOWN
from pipeline.storage.files import canonical_url

MARK = "f00d"  # fingerprint of the labels that `tests.support.labelled.write_run` makes


def labels_of(options: LabelOptions, mark: str = MARK) -> LabelRequest:
    source = canonical_url(options.input)
    return LabelRequest(source, DEFAULT_MODEL, options.score_threshold, mark, options.relabel)


def begin(options: LabelOptions, run_id: str | None = None) -> Run:
    """Write the plan and the record of a run; without a `run_id` it has that of a run of now."""
    run = make_run(options.output, plan_images(plan_request(options), NOTHING_KNOWN))
    run = run if run_id is None else replace(run, run_id=run_id)
    named = replace(options, model=DEFAULT_MODEL)
    recorded = named.without_secrets(canonical_url(options.input))
    computation = Computation("cpu", "fp32", "AVX2, 2 threads")
    committed = len(read_catalog(options.output).state.runs)
    gone = pa.array([], pa.string())
    write_run_record(options.output, run, recorded, MARK, computation, gone, None, committed)
    return run


def resume(options: LabelOptions) -> Run | None:
    """Take up the unfinished run of an OUTPUT. None if there is none of this command."""
    with OutputWriter(options.output) as writer:
        return take_up_unfinished_run(writer, plan_request(options), labels_of(options))
