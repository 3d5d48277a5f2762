"""What a run is to label: planned anew, or taken up where a killed one left it."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.accounting.estimate import Estimate, as_text
from jobs.output import paths
from jobs.output.errors import DamagedOutput
from jobs.output.records import environment, read_document, write_record, write_table
from jobs.output.run_ids import new_run_id
from jobs.output.writing import OutputWriter
from pipeline.plan.digests import Known
from pipeline.plan.listing import listing
from pipeline.plan.plan import Plan, plan
from pipeline.plan.shards import Shards, kept, plan_tables
from pipeline.storage.errors import DamagedFile
from pipeline.storage.files import (
    InputError,
    canonical,
    explained,
    join,
)
from pipeline.storage.urls import identity, mask

if TYPE_CHECKING:  # it loads torch and Ray, which `import` does without
    from jobs.cluster.placement import Placement
    from jobs.label.options import LabelOptions


@dataclass(frozen=True)
class Run:
    """A run that has been planned, new or taken up again."""

    run_id: str
    shards: Shards


def staging_url(output: str, run_id: str) -> str:
    return join(output, paths.staging(run_id))


def plan_url(output: str, run_id: str) -> str:
    """Where the plan of a run under way is; once it is finished, one beside its manifest stays."""
    return join(output, paths.plan_under_way(run_id))


def described(found: Plan, expected: Estimate | None, place: "Placement") -> str:
    """A plan for people, what it is `expected` to take, and where it would run."""
    lines = []
    for kind, name in (("files", "image files"), ("tar", "tar shards"), ("parquet", "Parquet")):
        outline = found.shards.outline
        shards = outline.filter(pc.equal(outline["kind"], kind))
        objects, size = (pc.sum(shards[column]).as_py() or 0 for column in ("objects", "size"))
        lines.append(f"{name:<14} {objects} in {len(shards)} shards, {size / 1e6:.1f} MB")
    lines += [
        f"{'known':<14} {found.known} objects that OUTPUT holds already",
        f"{'changed':<14} {found.changed} objects that OUTPUT holds an older version of",
        f"{'gone':<14} {len(found.gone)} objects that OUTPUT holds labels of and INPUT lost",
        f"{'ignored':<14} {found.ignored} files that are no images",
        f"{'estimate':<14} {as_text(expected)}",
        place.as_text(),
        "nothing was written",
    ]
    return "\n".join(lines)


def unfinished(options: "LabelOptions", mark: str, writer: OutputWriter) -> Run | None:
    """The run that a killed command left behind, if it was this command; without shards if done.

    --relabel drops that of another command; without it that is an InputError.
    """
    for run_id in writer.staged:
        record = _read_record(options.output, run_id)
        same = record["model_fingerprint"] == mark and _same_work(record["options"], options)
        if writer.catalog.knows(run_id):  # committed, but killed before it had tidied up
            writer.drop_staging(run_id)
            if same and (options.relabel or options.limit is not None):
                return Run(run_id, kept([]))  # which is finished: it is not to be done again
            continue
        if same:
            shards = _taken_up(options, run_id)
            writer.begin()
            shards.put(plan_url(options.output, run_id))
            return Run(run_id, shards)
        if not options.relabel:
            raise InputError(
                f"{mask(options.output)} holds an unfinished run, `label {_words(record)}`: run "
                "that command again to finish it, or pass --relabel to drop it"
            )
        writer.drop_staging(run_id)
    return None


def _read_record(output: str, run_id: str) -> dict[str, Any]:
    """run.json of an unfinished run. DamagedOutput where it does not say what was to be done."""
    try:
        record = read_document(output, run_id, "run.json")
    except (FileNotFoundError, DamagedOutput) as error:  # it was written before the plan
        raise _useless(run_id, paths.document(run_id, "run.json")) from error
    options = record.get("options")
    known = isinstance(options, dict) and options.keys() >= _NEEDED
    if "model_fingerprint" not in record or not known:
        raise _useless(run_id, paths.document(run_id, "run.json"))
    return record


def _useless(run_id: str, name: str) -> DamagedOutput:
    return DamagedOutput(
        f"{name} of OUTPUT is damaged or missing: put back what was there, or delete "
        f"{paths.staging(run_id)} of OUTPUT, and the same command plans anew. What is staged of "
        "that run is lost then; nothing that is published is"
    )


def _taken_up(options: "LabelOptions", run_id: str) -> Shards:
    """Shards of an unfinished run, as this version writes them. DamagedOutput without its plan.

    Where addresses carry secrets, with those that INPUT gives them now: the old ones end.
    """
    try:
        shards = kept(plan_tables(plan_url(options.output, run_id)))
    except DamagedFile as error:
        raise _useless(run_id, paths.plan_under_way(run_id)) from error
    if shards.signed:
        with explained("INPUT", options.input):
            listed = listing(options.input, options.format, options.output)
            now = {identity(member.uri): member.uri for member, _ in listed}
        shards = shards.renamed(lambda uri: now.get(identity(uri), uri))
    return shards


_WORK = ("input", "format", "limit", "relabel")  # options that decide which images are labelled
_NEEDED = {*_WORK, "output", "model", "weights", "score_threshold"}  # of `_words`


def _same_work(recorded: dict[str, Any], options: "LabelOptions") -> bool:
    """Whether options that were written down ask for the same images."""
    asked = masked(options)
    return all(recorded[name] == asked[name] for name in _WORK)


def _words(record: dict[str, Any]) -> str:
    """A recorded command as a person would type it, as far as it decides what is labelled."""
    given = record["options"]
    words = [given["input"], given["output"], "--model", given["model"]]
    words += ["--weights", given["weights"]] if given["weights"] else []
    words += ["--score-threshold", str(given["score_threshold"])]
    words += ["--format", given["format"]] if given["format"] != "auto" else []
    words += ["--limit", str(given["limit"])] if given["limit"] is not None else []
    return " ".join([*words, *(["--relabel"] if given["relabel"] else [])])


def masked(options: "LabelOptions") -> dict[str, Any]:
    """The options without secrets that URLs may hold, and INPUT by its one name."""
    fields = asdict(options)
    urls = {name: fields[name] and mask(fields[name]) for name in ("output", "weights", "address")}
    return {**fields, **urls, "input": canonical(options.input)}


def planned(options: "LabelOptions", known: Known) -> Plan:
    """What there is to do under INPUT; nothing is written."""
    return plan(options.input, options.format, options.limit, known, options.output)


def new_run(output: str, found: Plan) -> Run:
    """A run over what is planned; nothing is written."""
    return Run(new_run_id(output), found.shards)


def write_down(
    options: "LabelOptions", mark: str, run: Run, gone: pa.Array, expected: Estimate | None
) -> None:
    """Keep what a rerun will go by, the options and the plan.

    Also which objects are `gone`, and what the run is `expected` to take.
    """
    record: dict[str, Any] = {
        "run_id": run.run_id,
        "options": masked(options),
        "model_fingerprint": mark,
        "started_at": time.time(),
        "gone": len(gone),
        "estimate": expected,
        **environment(),
    }
    if len(gone):
        url = join(options.output, paths.document(run.run_id, "gone.parquet"))
        write_table(url, pa.table({"uri": gone}))
    write_record(options.output, run.run_id, record)
    run.shards.put(plan_url(options.output, run.run_id))
