"""What an OUTPUT holds labels of, read from the plans of its runs: nothing else is opened."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.urls import identity, mask
from pipeline.plan import KNOWN
from pipeline.publish import READ_AT_ONCE, committed_runs
from pipeline.storage import InputError, join, open_location, open_object, uri

if TYPE_CHECKING:  # it loads torch and Ray, which `import` and `compact` do without
    from jobs.label_options import LabelOptions


def canonical(url: str) -> str:
    """One name of a place, however it was spelled, without secrets."""
    return identity(uri(*open_location(url, "INPUT")))


def replaced_runs(options: "LabelOptions", runs: list[dict[str, Any]]) -> list[str]:
    """Which of the committed `runs` --relabel takes the place of: those over the same INPUT."""
    source = canonical(options.input)
    return [run["run_id"] for run in runs if options.relabel and run["input"] == source]


def known_objects(options: "LabelOptions", mark: str) -> pa.Table:
    """What need not be labelled again: schema KNOWN, a row a uri, as it was labelled last.

    InputError where labels were made otherwise, or where an archive was read in part: this run
    would lose the rest, or label the beginning twice.
    """
    runs = committed_runs(options.output)
    replaced = replaced_runs(options, runs)
    stay = [run for run in runs if run["run_id"] not in replaced]
    for run in stay:
        if run["model_fingerprint"] != mark:
            raise InputError(
                f"{mask(options.output)} holds labels of {run['model']} over {run['input']} "
                f"(fingerprint {run['model_fingerprint']}), and this run would be {options.model} "
                f"({mark}): use the same model, weights and threshold, another OUTPUT, or, for "
                "the same INPUT, --relabel"
            )
    source = canonical(options.input)
    known = planned_objects(options.output, stay, source)
    # What the runs that are replaced held is not known, but may be gone.
    old = [run for run in runs if run["run_id"] in replaced]
    before = planned_objects(options.output, old, source)
    nothing = pa.nulls(len(before), pa.string())
    before = before.set_column(1, KNOWN.field("etag"), nothing)
    return _newest(pa.concat_tables([before, known])) if len(before) else known


def planned_objects(output: str, runs: list[dict[str, Any]], source: str) -> pa.Table:
    """KNOWN of `runs`, oldest first; those over the INPUT `source` are of this one."""
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        tables = list(pool.map(lambda run: _planned(output, run, run["input"] == source), runs))
    tables.insert(0, KNOWN.empty_table())
    return _newest(pa.concat_tables(tables)) if len(tables) > 2 else tables[-1]


def _planned(output: str, run: dict[str, Any], of_input: bool) -> pa.Table:
    """KNOWN of one run. InputError where --limit ended within an archive."""
    fs, path = open_location(join(output, "_runs", run["run_id"], "plan.parquet"), "OUTPUT")
    with open_object(fs, path) as file:
        plan = pq.read_table(file, columns=["shard", "limit", "members"])
    cut = plan.filter(pc.is_valid(plan["limit"]))
    if len(cut):
        raise InputError(
            f"{mask(output)} holds a run over {run['input']} in which --limit cut "
            f"{cut['shard'][0]} short: label it whole into another OUTPUT, or that INPUT again "
            "with --relabel"
        )
    members = pc.list_flatten(plan["members"])
    columns = [pc.struct_field(members, name) for name in ("uri", "etag")]
    return pa.table([*columns, pa.repeat(pa.scalar(of_input), len(members))], schema=KNOWN)


def _newest(planned: pa.Table) -> pa.Table:
    """Of each uri the last version; it is of this INPUT where any of its runs was."""
    last = planned.group_by("uri", use_threads=False).aggregate(
        [("etag", "last"), ("of_input", "any")]
    )
    return pa.table([last[name] for name in ("uri", "etag_last", "of_input_any")], schema=KNOWN)
