"""What must hold of a store: at any moment, without the product's code, and at rest with it."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from jobs.output import paths
from jobs.output.catalog import load_catalog
from tests.jobs.output.explorer import Facts, Rules
from tests.jobs.output.programs import PROGRAMS, REMOVED, rows_in, rows_of
from tests.jobs.output.simulated import (
    Content,
    Desk,
    MemoryStore,
    Node,
    Outcome,
    Violation,
    played,
    token,
)

LAST = 9  # the slot of a writer that comes when all others have ended
_PROGRAMS = {f"{zlib.crc32(name.encode()):08x}": name for name in PROGRAMS}

Document = dict[str, Any]
Runs = tuple[str, ...]
# Runs that versions before the log left: those that count, and those whose labels are there.
Old = tuple[Runs, Runs]
NONE: Old = ((), ())


def judged(content: Content, old: Old = NONE, fences: bool = True) -> Facts:
    """The facts of a store that held `old` runs before its log began. Violation of any rule.

    `fences`: whether every commit is behind an entry of the same writer.
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
        labelling.append(tuple(sorted(_labelling(added, removed))))
        _judge_entry(entry, counting[-2], counting[-1])
        if fences and entry["kind"] == "commit" and writer != entry["token"]:
            raise Violation(f"entry {entry['number']} is behind another writer's")
        writer = entry["token"]
    if entries:
        _judge_files(content, added, removed)
    commits = Counter(entry["token"] for entry in entries if entry["kind"] == "commit")
    return Facts(tuple(counting), tuple(labelling), commits)


def _labelling(added: Iterable[str], removed: Mapping[str, Document]) -> Iterator[str]:
    """Runs whose labels are there, also where they were merged into others."""
    merged = {one["by"] for one in removed.values() if one["reason"] == "compacted"}
    for run_id in added:
        if run_id not in merged and place_of(run_id, removed) is not None:
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
    """A writer removes what there was before its entry, as its program wants it."""
    number = entry["number"]
    if entry["kind"] == "adopt" and after != before:
        raise Violation(f"entry {number} adopts {after} where {before} were")
    if entry["kind"] == "commit":
        program = _PROGRAMS[entry["token"][8:16]]
        gone = tuple(sorted(one["run_id"] for one in entry["removes"]))
        wanted = {"all": before, "one": gone[:1], "none": ()}[REMOVED.get(program, "none")]
        if gone != wanted:
            raise Violation(f"entry {number} of {program} removes {gone} of {before}")


def place_of(run_id: str, removed: Mapping[str, Document]) -> str | None:
    """The run that has a run's rows; None where they are removed."""
    while run_id in removed:
        if removed[run_id]["reason"] != "compacted":
            return None
        run_id = removed[run_id]["by"]
    return run_id


def _judge_files(
    content: Content, added: Mapping[str, Document], removed: Mapping[str, Document]
) -> None:
    """What counts is whole, and has each row once that was committed and not removed."""
    found: dict[str, Counter[str]] = {table: Counter() for table in paths.TABLES}
    expected: Counter[str] = Counter()
    for run_id, one in added.items():
        place = place_of(run_id, removed)
        if place is None:
            continue
        manifest = json.loads(_whole(content, one["manifest"], one["sha256"]))
        for file in manifest["files"] if place == run_id else ():
            data = _whole(content, file["path"], file["sha256"])
            found[file["path"].split("/")[0]].update(rows_in(data))
        if not manifest["compacts"]:
            expected.update(rows_of(run_id))
    for table, rows in found.items():
        if rows != expected:
            raise Violation(f"{table} has rows {sorted(rows.elements())}, not {sorted(expected)}")


def _whole(content: Content, name: str, sha256: str) -> bytes:
    data = content.get(name)
    if data is None:
        raise Violation(f"{name} counts, and is gone")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Violation(f"{name} counts, and is another's")
    return data


def rested(content: Content, facts: Facts) -> None:
    """What an undisturbed reader sees, and what an undisturbed writer leaves. Violation."""
    counting, found = facts.counting[-1], load_catalog(MemoryStore(content))
    seen = tuple(
        tuple(r["run_id"] for r in runs)
        for runs in (found.committed_runs(), found.labelling_runs())
    )
    if seen != (counting, facts.labelling[-1]):
        raise Violation(f"a last reader sees {seen} where {counting} count")
    before = facts.counting[0], facts.labelling[0]
    content = played(PROGRAMS["label"], Desk(LAST, "label"), content)
    if judged(content, before, False).counting[-1] != tuple(sorted((*counting, f"w{LAST}"))):
        raise Violation(f"a last writer found {counting}, and did not add its run")
    if kept := remains(content):
        raise Violation(f"{kept} never counted, and the next writer left them")


def judge_claim(node: Node, outcome: Outcome, facts: Facts) -> None:
    """Violation where what a writer says of itself is not so."""
    who = f"{node.program} of writer {node.slot}"
    if outcome.kind == "read":
        seen = zip(facts.counting, facts.labelling, strict=True)
        if outcome.seen not in list(seen)[outcome.since :]:
            raise Violation(f"{who} sees {outcome.seen}, which was never so since it began")
        return
    there = facts.commits[token(node.slot, node.program)]
    # Of one that ended otherwise, a commit may be there that it does not know of.
    if not outcome.commits <= there <= outcome.commits + (outcome.kind == "ended"):
        raise Violation(
            f"{who} has {outcome.kind}, with {outcome.commits} commits, and {there} are in the log"
        )


def remains(content: Content) -> list[str]:
    """Parts and manifests of runs that do not count, or that no run that counts has."""
    entries = list(entries_in(content))
    removed = {one["run_id"]: one for entry in entries for one in entry["removes"]}
    needed = set()
    for one in (one for entry in entries for one in entry["adds"]):
        place = place_of(one["run_id"], removed)
        if place is not None and one["manifest"] in content:
            needed.add(one["manifest"])
            files = json.loads(content[one["manifest"]])["files"]
            needed |= {file["path"] for file in files if place == one["run_id"]}
    found = {name: paths.run_and_token_of_part(name) for name in content.keys() - needed}
    found = {name: one or paths.run_and_token_of_manifest(name) for name, one in found.items()}
    kept = {run_id for run_id, one in removed.items() if one.get("kept_until")}
    return sorted(name for name, one in found.items() if one is not None and one[0] not in kept)


def rules(old: Old = NONE, fences: bool = True) -> Rules:
    """The rules of a store that held `old` runs before its log began."""
    return Rules(lambda content: judged(content, old, fences), rested, judge_claim, remains)
