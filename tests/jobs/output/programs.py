"""The programs of the explorer's writers, which use the real `LogWriter`."""

import hashlib
import json
from collections.abc import Sequence

from jobs.output import paths
from jobs.output.catalog import load_catalog
from jobs.output.errors import CommitLost
from jobs.output.log import Reason
from jobs.output.manifest import FileOfRun, Manifest, make_manifest
from pipeline.stages.publish import PartFile, PublishTarget
from tests.jobs.output.simulated import LATER, MemoryStore, Outcome, Program, Stage, WriterState

SHARED = "shared"  # a run that several writers resume


def rows_of(run_id: str) -> list[str]:
    """Return the rows that a run of `label` has in each of its tables."""
    return [f"{run_id}.x", f"{run_id}.y"]


def rows_in(data: bytes) -> list[str]:
    """Return the rows that a part holds."""
    found: list[str] = json.loads(data)["rows"]
    return found


def open_log(state: WriterState, store: MemoryStore) -> Outcome | None:
    state.log = state.make(store)
    return None


def fence(state: WriterState, store: MemoryStore) -> Outcome | None:
    state.writer.fence()
    return None


def choose_all_runs(state: WriterState, store: MemoryStore) -> Outcome | None:
    """Choose all runs that count, as this writer read the log, to be removed."""
    state.removes = [run["run_id"] for run in state.writer.catalog.committed_runs()]
    return None


def choose_one_run(state: WriterState, store: MemoryStore) -> Outcome | None:
    state.removes = [run["run_id"] for run in state.writer.catalog.committed_runs()][:1]
    return None if state.removes else Outcome("done")


def write_labels(state: WriterState, store: MemoryStore) -> Outcome | None:
    _write(state, store, f"w{state.slot}", rows_of(f"w{state.slot}"))
    return None


def write_more_labels(state: WriterState, store: MemoryStore) -> Outcome | None:
    _write(state, store, f"w{state.slot}-more", rows_of(f"w{state.slot}-more"))
    return None


def write_shared(state: WriterState, store: MemoryStore) -> Outcome | None:
    """Label the run that others label too, unless it is committed."""
    if state.writer.catalog.knows(SHARED):
        return Outcome("done")
    _write(state, store, SHARED, rows_of(SHARED))
    return None


def merge_runs(state: WriterState, store: MemoryStore) -> Outcome | None:
    """Write the rows of all runs that count as one run."""
    runs = state.writer.catalog.committed_runs()
    if not runs:
        return Outcome("done")
    state.removes = [run["run_id"] for run in runs]
    images = [one["path"] for run in runs for one in run["files"] if one["path"][0] == "i"]
    rows = [row for name in images for row in rows_in(store.read(name))]
    _write(state, store, f"w{state.slot}", rows, compacts=True)
    return None


def _write(
    state: WriterState, store: MemoryStore, run_id: str, rows: list[str], compacts: bool = False
) -> None:
    """Write the parts of a run, which name their writer, and make its manifest."""
    log = state.writer
    template = paths.part_template(run_id, log.token)
    for table in paths.TABLES:
        name, data = template.format(table=table, number=0), part(rows, log.token)
        store.write(name, data)
        state.files.append(file_of_run(name, data))
    state.run = manifest_of(run_id, log.token, state.files, state.removes, compacts)


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


def make_commit_stage(reason: Reason, kept_until: float = 0.0) -> Stage:
    def commit(state: WriterState, store: MemoryStore) -> Outcome | None:
        state.writer.commit(state.run, state.removes, reason, kept_until)
        state.commits += 1
        state.files = []  # files of runs that are not committed
        return None

    return commit


def record_length_of_log(state: WriterState, store: MemoryStore) -> Outcome | None:
    """Record how long the log is, so that what is read then can be judged."""
    state.since = store.length()
    return None


def list_runs(state: WriterState, store: MemoryStore) -> Outcome | None:
    found = load_catalog(store)
    seen = [
        tuple(run["run_id"] for run in runs)
        for runs in (found.committed_runs(), found.labelling_runs())
    ]
    return Outcome("read", 0, tuple(seen), state.since)


def delete_own_parts(state: WriterState, store: MemoryStore) -> None:
    """Delete this writer's parts, as commands do after a lost commit: they can never count."""
    store.remove(one["path"] for one in state.files)


def _writing(*stages: Stage, allowed: tuple[type[Exception], ...] = ()) -> Program:
    return Program((open_log, fence, *stages), delete_own_parts, (CommitLost,), allowed)


PROGRAMS = {
    "label": _writing(write_labels, make_commit_stage("replaced")),
    "label twice": _writing(
        write_labels,
        make_commit_stage("replaced"),
        write_more_labels,
        make_commit_stage("replaced"),
    ),
    "relabel": _writing(choose_all_runs, write_labels, make_commit_stage("replaced")),
    "relabel and keep": _writing(
        choose_all_runs, write_labels, make_commit_stage("replaced", LATER / 2)
    ),
    # If another writer took over, the files that this one merges may be gone.
    "compact": _writing(merge_runs, make_commit_stage("compacted"), allowed=(FileNotFoundError,)),
    "delete": _writing(choose_one_run, make_commit_stage("deleted")),
    "take up": _writing(write_shared, make_commit_stage("replaced")),
    "list": Program((record_length_of_log, list_runs), delete_own_parts),
}
# Which of the runs that count each program removes.
REMOVED = {"relabel": "all", "relabel and keep": "all", "compact": "all", "delete": "one"}
