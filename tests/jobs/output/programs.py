"""What the explorer's writers do, with the real `LogWriter`, and what they find."""

import hashlib
import json
from collections.abc import Sequence

from jobs.output import paths
from jobs.output.catalog import load_catalog
from jobs.output.errors import CommitLost
from jobs.output.log import Reason
from jobs.output.manifest import FileOfRun, Manifest, make_manifest
from pipeline.stages.publish import PartFile, PublishTarget
from tests.jobs.output.simulated import LATER, Desk, MemoryStore, Outcome, Program, Stage

SHARED = "shared"  # a run that several writers take up


def rows_of(run_id: str) -> list[str]:
    """What a run that labels has in each of its tables."""
    return [f"{run_id}.x", f"{run_id}.y"]


def rows_in(data: bytes) -> list[str]:
    """What a part holds."""
    found: list[str] = json.loads(data)["rows"]
    return found


def open_log(desk: Desk, store: MemoryStore) -> Outcome | None:
    desk.log = desk.make(store)
    return None


def fence(desk: Desk, store: MemoryStore) -> Outcome | None:
    desk.writer.fence()
    return None


def take_all(desk: Desk, store: MemoryStore) -> Outcome | None:
    """Remove all runs that count, as this writer read it."""
    desk.removes = [run["run_id"] for run in desk.writer.catalog.committed_runs()]
    return None


def take_one(desk: Desk, store: MemoryStore) -> Outcome | None:
    desk.removes = [run["run_id"] for run in desk.writer.catalog.committed_runs()][:1]
    return None if desk.removes else Outcome("done")


def write_labels(desk: Desk, store: MemoryStore) -> Outcome | None:
    _write(desk, store, f"w{desk.slot}", rows_of(f"w{desk.slot}"))
    return None


def write_more_labels(desk: Desk, store: MemoryStore) -> Outcome | None:
    _write(desk, store, f"w{desk.slot}-more", rows_of(f"w{desk.slot}-more"))
    return None


def write_shared(desk: Desk, store: MemoryStore) -> Outcome | None:
    """Label the run that others label too, unless it is committed."""
    if desk.writer.catalog.knows(SHARED):
        return Outcome("done")
    _write(desk, store, SHARED, rows_of(SHARED))
    return None


def merge(desk: Desk, store: MemoryStore) -> Outcome | None:
    """Write the rows of all runs that count as one run."""
    runs = desk.writer.catalog.committed_runs()
    if not runs:
        return Outcome("done")
    desk.removes = [run["run_id"] for run in runs]
    images = [one["path"] for run in runs for one in run["files"] if one["path"][0] == "i"]
    rows = [row for name in images for row in rows_in(store.read(name))]
    _write(desk, store, f"w{desk.slot}", rows, compacts=True)
    return None


def _write(
    desk: Desk, store: MemoryStore, run_id: str, rows: list[str], compacts: bool = False
) -> None:
    """Write the parts of a run, which tell its writer, and make its manifest."""
    log = desk.writer
    template = paths.part_template(run_id, log.token)
    for table in paths.TABLES:
        name, data = template.format(table=table, number=0), part(rows, log.token)
        store.write(name, data)
        desk.files.append(file_of_run(name, data))
    desk.run = manifest_of(run_id, log.token, desk.files, desk.removes, compacts)


def part(rows: Sequence[str], token: str) -> bytes:
    return json.dumps({"rows": list(rows), "by": token}).encode()


def file_of_run(name: str, data: bytes) -> FileOfRun:
    digest = hashlib.sha256(data).hexdigest()
    return {"path": name, "rows": len(rows_in(data)), "bytes": len(data), "sha256": digest}


def manifest_of(
    run_id: str, token: str, files: Sequence[FileOfRun], replaces: Sequence[str], compacts: bool
) -> Manifest:
    target = PublishTarget("", run_id, "", "", "tiny", "f00d", ("cat",))
    found = [PartFile(one["path"], one["rows"], one["bytes"], one["sha256"]) for one in files]
    counts = {"ok": found[0].rows}
    plan = paths.plan(run_id, token)
    return make_manifest(target, plan, "file:///lake", found, counts, replaces, compacts)


def committing(reason: Reason, kept_until: float = 0.0) -> Stage:
    def commit(desk: Desk, store: MemoryStore) -> Outcome | None:
        desk.writer.commit(desk.run, desk.removes, reason, kept_until)
        desk.commits += 1
        desk.files = []  # of a run that is not committed
        return None

    return commit


def look(desk: Desk, store: MemoryStore) -> Outcome | None:
    """Note how long the log is, so that what is read then can be judged."""
    desk.since = store.length()
    return None


def list_runs(desk: Desk, store: MemoryStore) -> Outcome | None:
    found = load_catalog(store)
    seen = [
        tuple(run["run_id"] for run in runs)
        for runs in (found.committed_runs(), found.labelling_runs())
    ]
    return Outcome("read", 0, tuple(seen), desk.since)


def delete_own_parts(desk: Desk, store: MemoryStore) -> None:
    """What commands do where their commit is lost: nothing of theirs will ever count."""
    store.remove(one["path"] for one in desk.files)


def _writing(*stages: Stage, allowed: tuple[type[Exception], ...] = ()) -> Program:
    return Program((open_log, fence, *stages), delete_own_parts, (CommitLost,), allowed)


PROGRAMS = {
    "label": _writing(write_labels, committing("replaced")),
    "label twice": _writing(
        write_labels, committing("replaced"), write_more_labels, committing("replaced")
    ),
    "relabel": _writing(take_all, write_labels, committing("replaced")),
    "relabel and keep": _writing(take_all, write_labels, committing("replaced", LATER / 2)),
    # Where another writer took over, what it would merge may be gone.
    "compact": _writing(merge, committing("compacted"), allowed=(FileNotFoundError,)),
    "delete": _writing(take_one, committing("deleted")),
    "take up": _writing(write_shared, committing("replaced")),
    "list": Program((look, list_runs), delete_own_parts),
}
# Which of the runs that count they remove.
REMOVED = {"relabel": "all", "relabel and keep": "all", "compact": "all", "delete": "one"}
