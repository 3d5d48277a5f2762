"""What a run is to label: planned anew, or taken up where a killed one left it."""

import io
import re
import secrets
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.cost.estimate import Estimate, as_text
from jobs.known import canonical
from jobs.run_record import environment, read_document, write_document
from model.urls import identity, mask
from pipeline.listing import listing
from pipeline.plan import Plan, plan
from pipeline.publish import committed_runs
from pipeline.shards import Shards, kept, plan_tables
from pipeline.storage import (
    InputError,
    explained,
    find,
    join,
    open_location,
    open_object,
    remove_tree,
    write_whole,
)
from pipeline.versions import Known

if TYPE_CHECKING:  # it loads torch and Ray, which `import` does without
    from jobs.label_options import LabelOptions
    from jobs.placement import Placement

RUN_TIME = "%Y%m%dT%H%M%SZ"  # with which the name of a run begins
RUN_NAME = re.compile(r"\d{8}T\d{6}Z-")


@dataclass(frozen=True)
class Run:
    """A run that has been planned, new or taken up again."""

    run_id: str
    shards: Shards


def staging_url(output: str, run_id: str) -> str:
    return join(output, "_staging", run_id)


def plan_url(output: str, run_id: str) -> str:
    """Where the plan of a run under way is; once it is finished, one beside its manifest stays."""
    return join(staging_url(output, run_id), "plan.parquet")


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


def unfinished(options: "LabelOptions", mark: str) -> Run | None:
    """The run that a killed command left behind, if it was this command; without shards if done.

    --relabel drops that of another command; without it that is an InputError.
    """
    committed = {run["run_id"] for run in committed_runs(options.output)}
    fs, _ = open_location(options.output, "OUTPUT")
    for folder in begun(options.output):
        run_id = folder.rsplit("/", 1)[-1]
        record = read_document(options.output, run_id, "run.json")
        same = record["model_fingerprint"] == mark and _same_work(record["options"], options)
        if run_id in committed:  # published, but killed before it had tidied up
            remove_tree(fs, folder)
            if same and (options.relabel or options.limit is not None):
                return Run(run_id, kept([]))  # which is finished: it is not to be done again
            continue
        if same:
            return Run(run_id, _taken_up(options, plan_url(options.output, run_id)))
        if not options.relabel:
            raise InputError(
                f"{mask(options.output)} holds an unfinished run, `label {_words(record)}`: run "
                "that command again to finish it, or pass --relabel to drop it"
            )
        remove_tree(fs, folder)
    return None


def _taken_up(options: "LabelOptions", url: str) -> Shards:
    """Shards of the plan at `url`, which is as this version reads it from then on.

    Where addresses carry secrets, with those that INPUT gives them now: the old ones end.
    """
    shards = kept(plan_tables(url))
    if shards.signed:
        with explained("INPUT", options.input):
            listed = listing(options.input, options.format, options.output)
            now = {identity(member.uri): member.uri for member, _ in listed}
        shards = shards.renamed(lambda uri: now.get(identity(uri), uri))
    shards.put(url)
    return shards


def begun(output: str) -> list[str]:
    """Staging folders of runs that were planned, and may not be finished.

    Folders without a plan are removed: of runs that were killed while they tidied up, and of
    imports.
    """
    fs, staging = open_location(join(output, "_staging"), "OUTPUT")
    found = list(find(fs, staging))
    plans = [name for name in found if name.endswith("/plan.parquet")]
    planned = {name.rsplit("/", 1)[0] for name in plans}
    folders = {f"{staging}/{name[len(staging) :].strip('/').split('/')[0]}" for name in found}
    for folder in sorted(folders - planned):
        remove_tree(fs, folder)
    return sorted(planned)


_WORK = ("input", "format", "limit", "relabel")  # options that decide which images are labelled


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


def new_run_id(output: str) -> str:
    """A name that sorts behind those of all runs of OUTPUT, also where a clock was ahead."""
    fs, path = open_location(join(output, "_runs"), "OUTPUT")
    folders = {name[len(path) :].strip("/").split("/")[0] for name in find(fs, path)}
    names = [name for name in folders if RUN_NAME.match(name)]
    now = datetime.now(UTC).replace(microsecond=0)
    if names:
        newest = datetime.strptime(max(names)[:16], RUN_TIME).replace(tzinfo=UTC)
        now = max(now, newest + timedelta(seconds=1))
    return f"{now:{RUN_TIME}}-{secrets.token_hex(3)}"


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
        url = join(options.output, "_runs", run.run_id, "gone.parquet")
        write_table(url, pa.table({"uri": gone}))
    write_document(options.output, run.run_id, "run.json", record)
    run.shards.put(plan_url(options.output, run.run_id))


def read_table(url: str) -> pa.Table:
    """The Parquet file at `url`."""
    fs, path = open_location(url, "OUTPUT")
    with open_object(fs, path) as file:
        return pq.read_table(file)


def write_table(url: str, table: pa.Table) -> None:
    """Put a table at `url` as Parquet, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    fs, path = open_location(url, "OUTPUT")
    write_whole(fs, path, buffer.getvalue())
