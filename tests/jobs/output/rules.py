"""Rules of a store: at any moment, checked without the product's code, and at rest, with it."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from jobs.output import paths
from jobs.output.catalog import load_catalog
from tests.jobs.output.explorer import LogSummary, Rules
from tests.jobs.output.programs import PROGRAMS, REMOVED, rows_in, rows_of
from tests.jobs.output.simulated import (
    Content,
    MemoryStore,
    Node,
    Outcome,
    Violation,
    WriterState,
    play,
    token,
)

LAST = 9  # the slot of a writer that begins after all others have ended
_PROGRAMS = {f"{zlib.crc32(name.encode()):08x}": name for name in PROGRAMS}

Document = dict[str, Any]
Runs = tuple[str, ...]
# Runs of versions before the log: those that count, and those whose labels still exist.
Old = tuple[Runs, Runs]
NONE: Old = ((), ())


def judge_store(content: Content, old: Old = NONE, fences: bool = True) -> LogSummary:
    """Summarise the log of a store that held `old` runs before; Violation if a rule is broken.

    `fences`: whether every commit must follow an entry of the same writer.
    """
    entries = list(entries_in(content))
    added: dict[str, Document] = {}
    removed: dict[str, Document] = {}
    counting, labelling = [old[0]], [old[1]]
    writer = None
    for entry in entries:
        for one in entry["adds"]:
            if one["run_id"] in added:
                raise Violation(f"entry {entry['number']} adds {one['run_id']} again")
            added[one["run_id"]] = one
        for one in entry["removes"]:
            if one["run_id"] not in added or one["run_id"] in removed:
                raise Violation(f"entry {entry['number']} removes {one['run_id']}, which is gone")
            removed[one["run_id"]] = one
        counting.append(tuple(sorted(added.keys() - removed.keys())))
        labelling.append(tuple(sorted(_find_labelling_runs(added, removed))))
        _judge_entry(entry, counting[-2], counting[-1])
        if fences and entry["kind"] == "commit" and writer != entry["token"]:
            raise Violation(f"entry {entry['number']} follows one of another writer")
        writer = entry["token"]
    if entries:
        _judge_files(content, added, removed)
    commits = Counter(entry["token"] for entry in entries if entry["kind"] == "commit")
    return LogSummary(tuple(counting), tuple(labelling), commits)


def _find_labelling_runs(added: Iterable[str], removed: Mapping[str, Document]) -> Iterator[str]:
    """Find the runs whose labels still exist, also if they were merged into others."""
    merged = {one["by"] for one in removed.values() if one["reason"] == "compacted"}
    for run_id in added:
        if run_id not in merged and find_holder(run_id, removed) is not None:
            yield run_id


def entries_in(content: Content) -> Iterator[Document]:
    names = sorted(name for name in content if paths.number_of_entry(name) is not None)
    for number, name in enumerate(names, 1):
        entry = _entry(content[name])
        if name != paths.entry(number) or entry["number"] != number:
            raise Violation(f"the log has a gap before {name}")
        yield entry


@cache
def _entry(data: bytes) -> Document:
    entry: Document = json.loads(data)["content"]
    return entry


def _judge_entry(entry: Document, before: Runs, after: Runs) -> None:
    """An entry removes those of the earlier runs that the program of its writer removes."""
    number = entry["number"]
    if entry["kind"] == "adopt" and after != before:
        raise Violation(f"entry {number} adopts {after} instead of {before}")
    if entry["kind"] == "commit":
        program = _PROGRAMS[entry["token"][8:16]]
        gone = tuple(sorted(one["run_id"] for one in entry["removes"]))
        wanted = {"all": before, "one": gone[:1], "none": ()}[REMOVED.get(program, "none")]
        if gone != wanted:
            raise Violation(f"entry {number} of {program} removes {gone} of {before}")


def find_holder(run_id: str, removed: Mapping[str, Document]) -> str | None:
    """Return the run that holds the rows of a run; None if they are removed."""
    while run_id in removed:
        if removed[run_id]["reason"] != "compacted":
            return None
        run_id = removed[run_id]["by"]
    return run_id


def _judge_files(
    content: Content, added: Mapping[str, Document], removed: Mapping[str, Document]
) -> None:
    """Files that count are whole, and hold each row once that was committed and not removed."""
    found: dict[str, Counter[str]] = {table: Counter() for table in paths.TABLES}
    expected: Counter[str] = Counter()
    for run_id, one in added.items():
        holder = find_holder(run_id, removed)
        if holder is None:
            continue
        manifest = json.loads(_read_whole(content, one["manifest"], one["sha256"]))
        for file in manifest["files"] if holder == run_id else ():
            data = _read_whole(content, file["path"], file["sha256"])
            found[file["path"].split("/")[0]].update(rows_in(data))
        if not manifest["compacts"]:
            expected.update(rows_of(run_id))
    for table, rows in found.items():
        if rows != expected:
            raise Violation(f"{table} has rows {sorted(rows.elements())}, not {sorted(expected)}")


def _read_whole(content: Content, name: str, sha256: str) -> bytes:
    data = content.get(name)
    if data is None:
        raise Violation(f"{name} counts, but it is gone")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Violation(f"{name} counts, but another writer wrote it")
    return data


def judge_at_rest(content: Content, summary: LogSummary) -> None:
    """An undisturbed reader sees what counts, and an undisturbed writer leaves no remains."""
    counting, found = summary.counting[-1], load_catalog(MemoryStore(content))
    seen = tuple(
        tuple(r["run_id"] for r in runs)
        for runs in (found.committed_runs(), found.labelling_runs())
    )
    if seen != (counting, summary.labelling[-1]):
        raise Violation(f"a last reader sees {seen}, but {counting} count")
    before = summary.counting[0], summary.labelling[0]
    content = play(PROGRAMS["label"], WriterState(LAST, "label"), content)
    if judge_store(content, before, False).counting[-1] != tuple(sorted((*counting, f"w{LAST}"))):
        raise Violation(f"a last writer found {counting}, but did not add its run")
    if left := find_remains(content):
        raise Violation(f"{left} never counted, but the next writer did not delete them")


def judge_claim(node: Node, outcome: Outcome, summary: LogSummary) -> None:
    """What a writer reports when it ends must be true."""
    who = f"{node.program} of writer {node.slot}"
    if outcome.kind == "read":
        seen = zip(summary.counting, summary.labelling, strict=True)
        if outcome.seen not in list(seen)[outcome.since :]:
            raise Violation(f"{who} sees {outcome.seen}, which was never true since it began")
        return
    committed = summary.commits[token(node.slot, node.program)]
    # A writer that ended otherwise may have made a commit that it does not know of.
    if not outcome.commits <= committed <= outcome.commits + (outcome.kind == "ended"):
        raise Violation(
            f"{who} reports {outcome.kind}, {outcome.commits} commits; the log has {committed}"
        )


def find_remains(content: Content) -> list[str]:
    """Find parts and manifests that no run needs that counts or that is kept for readers."""
    entries = list(entries_in(content))
    removed = {one["run_id"]: one for entry in entries for one in entry["removes"]}
    needed = set()
    for one in (one for entry in entries for one in entry["adds"]):
        holder = find_holder(one["run_id"], removed)
        if holder is not None and one["manifest"] in content:
            needed.add(one["manifest"])
            files = json.loads(content[one["manifest"]])["files"]
            needed |= {file["path"] for file in files if holder == one["run_id"]}
    found = {name: paths.run_and_token_of_part(name) for name in content.keys() - needed}
    found = {name: one or paths.run_and_token_of_manifest(name) for name, one in found.items()}
    kept = {run_id for run_id, one in removed.items() if one.get("kept_until")}
    return sorted(name for name, one in found.items() if one is not None and one[0] not in kept)


def make_rules(old: Old = NONE, fences: bool = True) -> Rules:
    """Make the rules of a store that held `old` runs before its log began."""
    return Rules(
        lambda content: judge_store(content, old, fences), judge_at_rest, judge_claim, find_remains
    )
