"""`detr-batch bench gpu --collect`: add the results to the committed tables, and describe them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.bench.gpu.environment import code_digest
from jobs.bench.gpu.journal import CHOICE, ENVIRONMENT, NAME, TIMING, Journal, Record
from jobs.bench.gpu.tables import describe_results
from jobs.bench.measure import NO_COMMIT, RESULTS, append_rows, commit
from model.ops import launches, ways
from pipeline.storage.errors import InputError


@dataclass(frozen=True)
class Tables:
    """The files that results go into."""

    results: Path | None = None  # None: RESULTS; results of --tiny are not added anywhere
    launches: Path = launches.TABLE
    ways: Path = ways.TABLE


def collect(folder: Path, tables: Tables) -> str:
    """Add the timings to the results, and the choices to the tables that the code reads.

    Rows that are already there are not added again. Returns the text for people. InputError for a
    folder without results.
    """
    records = list(_records(folder))
    lines = [describe_results(records), ""]
    tiny = any(record["tiny"] for record in records if record["kind"] == ENVIRONMENT)
    path = tables.results or (None if tiny else RESULTS)
    if path is None:
        return "\n".join([*lines, "These are of --tiny, which measures nothing: no row is kept."])
    rows = list(_rows(records))
    added = append_rows(rows, path)
    lines.append(f"{added} rows added to {path}, which had {len(rows) - added} of them before")
    if any(row["git_sha"] == NO_COMMIT for row in rows):
        lines.append(
            "Some are of other code than this checkout's, and name no commit: collect them where "
            "the code is that was measured"
        )
    lines += _keep_choices(records, tables)
    return "\n".join(lines)


def _records(folder: Path) -> Iterator[Record]:
    """Read the records of all journals below the folder."""
    journals = sorted(folder.rglob(NAME))
    if not journals:
        raise InputError(f"--collect {folder}: there is no {NAME} in it; give the --out of a run")
    for path in journals:
        yield from Journal(path.parent).records()


def _rows(records: list[Record]) -> Iterator[dict[str, object]]:
    """Yield rows of the results, each with its environment.

    A copy without git knows no commit. If its code is the same as this checkout's, the row gets
    this checkout's commit.
    """
    digest, own = code_digest(), commit()
    environment: dict[str, object] = {}
    for record in records:
        if record["kind"] == ENVIRONMENT:
            environment = dict(record["row"])
            if environment["git_sha"] == NO_COMMIT and record["code"] == digest:
                environment["git_sha"] = own
        elif record["kind"] == TIMING:
            yield environment | record["row"]


def _keep_choices(records: list[Record], tables: Tables) -> Iterator[str]:
    """Write the fastest choices into the tables, and yield a line for each."""
    for record in records:
        if record["kind"] != CHOICE:
            continue
        capability, what, chosen = record["capability"], record["what"], record["chosen"]
        if record["table"] == "launches":
            known = launches.read_table(tables.launches).get(capability, {})
            known = launches.read_table(tables.launches)[launches.ANY] | known
            launch = launches.Launch(**chosen)
            launches.add_to_table(capability, known | {what: launch}, tables.launches)
            path = tables.launches
        else:
            ways.add_way(capability, what, chosen, tables.ways)
            path = tables.ways
        yield f"{path.name}, compute capability {capability}, {what}: {chosen}"
