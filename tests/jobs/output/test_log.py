"""Damaged documents of OUTPUT are refused, and a log of any length is read."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import pytest

from jobs.output import paths
from jobs.output.catalog import load_catalog
from jobs.output.documents import FORMAT, seal
from jobs.output.errors import CommitLost, DamagedOutput
from jobs.output.log import CHECKPOINT_EVERY, Added, Entry, Removed, State, checkpoint_to_bytes
from jobs.output.log_writer import LogWriter
from jobs.output.manifest import Manifest, manifest_to_bytes
from tests.jobs.output.programs import file_of_run, manifest_of, part, rows_of
from tests.jobs.output.simulated import MemoryStore

TOKEN = "0123456789abcdef" * 2


def labelled(writer: LogWriter, run_id: str, compacts: bool = False, **changed: Any) -> Manifest:
    """Write the parts of a run, and return its manifest."""
    files = []
    for table in paths.TABLES:
        name = paths.part_template(run_id, writer.token).format(table=table, number=0)
        data = part(rows_of(run_id), writer.token)
        writer.store.write(name, data)
        files.append(file_of_run(name, data))
    manifest: Any = {**manifest_of(run_id, writer.token, files, [], compacts), **changed}
    return manifest


def commit(store: MemoryStore, run_id: str) -> LogWriter:
    writer = LogWriter(store)
    writer.fence()
    writer.commit(labelled(writer, run_id))
    return writer


@pytest.fixture
def store() -> MemoryStore:
    """A store with two runs and a checkpoint of the first."""
    store = MemoryStore()
    state = commit(store, "a").catalog.state
    state.manifests = load_catalog(store).manifests
    store.create(paths.checkpoint(state.number), checkpoint_to_bytes(state))
    commit(store, "b")
    assert [run["run_id"] for run in load_catalog(store).committed_runs()] == ["a", "b"]
    return store


def documents(store: MemoryStore) -> dict[str, str]:
    """Return the name of one document of each kind that a reader needs."""
    manifest = next(name for name in store.names(paths.RUNS) if "/b/manifest-" in name)
    return {"entry": paths.entry(4), "checkpoint": paths.checkpoint(2), "manifest": manifest}


def refused(store: MemoryStore, name: str, data: bytes) -> str:
    """Replace the bytes of an object, check that readers refuse it, and return the error."""
    damaged = MemoryStore({**store.content, name: data})
    before = dict(damaged.content)
    for read in (load_catalog, LogWriter):
        with pytest.raises(DamagedOutput) as raised:
            read(damaged)
        assert name in str(raised.value)
    assert damaged.content == before
    return str(raised.value)


@pytest.mark.parametrize("kind", ["entry", "checkpoint", "manifest"])
def test_a_document_that_is_cut_or_another_is_named(store: MemoryStore, kind: str) -> None:
    name = documents(store)[kind]
    data = store.read(name)
    for cut in range(0, len(data) - 1, 20):
        refused(store, name, data[:cut])
    for other in (b"[]", b"{}", b"[" * 20_000, b"null", b"1", b'"text"'):
        refused(store, name, other)


@pytest.mark.parametrize("kind", ["entry", "checkpoint", "manifest"])
def test_a_bit_that_flips_is_seen(store: MemoryStore, kind: str) -> None:
    name = documents(store)[kind]
    data = store.read(name)
    version = data.index(str(FORMAT).encode())
    for place in (*range(0, len(data), 50), version):
        for bit in range(8):
            flipped = bytes([data[place] ^ 1 << bit])
            refused(store, name, data[:place] + flipped + data[place + 1 :])


@pytest.mark.parametrize("kind", ["entry", "manifest"])
def test_a_document_that_is_missing_is_named(store: MemoryStore, kind: str) -> None:
    name = documents(store)[kind]
    name = paths.entry(3) if kind == "entry" else name
    store.remove([name])
    with pytest.raises(DamagedOutput, match=name):
        load_catalog(store)
    with pytest.raises(DamagedOutput, match=name):
        LogWriter(store)


def test_a_gap_in_the_log_names_the_entry(store: MemoryStore) -> None:
    store.remove([paths.entry(3)])
    with pytest.raises(DamagedOutput, match=f"{paths.entry(3)} of OUTPUT is missing"):
        load_catalog(store)


def test_a_newer_format_is_refused_with_what_to_do(store: MemoryStore) -> None:
    name = paths.entry(4)
    newer = store.read(name).replace(b'"format": 2', b'"format": 3')
    assert "a newer detr-batch wrote" in refused(store, name, newer)


def resealed(store: MemoryStore, change: Callable[[Any], None]) -> MemoryStore:
    """Change the manifest of the last entry, and make its digest and the entry's seal fit again.

    Anybody who may write OUTPUT can do this.
    """
    name = paths.entry(4)
    entry = json.loads(store.read(name))["content"]
    manifest = json.loads(store.read(entry["adds"][0]["manifest"]))
    change(manifest)
    data = json.dumps(manifest).encode()
    entry["adds"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    content = {**store.content, entry["adds"][0]["manifest"]: data, name: seal(entry)}
    return MemoryStore(content)


OUTSIDE = ["x/../../../victim", "..", "", "../victim", "/victim", "a/b", "a\\b", "a\n", "\u0661/x"]
PART = f"part-00000-{TOKEN}.parquet"


@pytest.mark.parametrize("name", [*OUTSIDE, "log", "lock.json"])
def test_runs_that_lead_outside_are_refused(store: MemoryStore, name: str) -> None:
    with pytest.raises(DamagedOutput, match="manifest-"):
        load_catalog(resealed(store, lambda manifest: manifest.update(replaces=[name])))
    with pytest.raises(DamagedOutput, match="manifest-"):
        load_catalog(resealed(store, lambda manifest: manifest.update(run_id=name)))
    for change in (
        {"adds": [{"run_id": name, "manifest": f"_runs/{name}/manifest.json", "sha256": "0" * 64}]},
        {"removes": [{"run_id": name, "reason": "deleted"}]},
        {"removes": [{"run_id": "a", "reason": "replaced", "by": name}]},
    ):
        entry = json.loads(store.read(paths.entry(4)))["content"] | change
        refused(store, paths.entry(4), seal(entry))


@pytest.mark.parametrize(
    "path",
    [
        f"images/run=b/../../../{PART}",
        f"images/run=../run=b/{PART}",
        f"/images/run=b/{PART}",
        f"../images/run=b/{PART}",
        f"images/run=a/{PART}",  # a part of another run
        f"_runs/run=b/{PART}",
        f"images/run=b/{PART}/x",
        f"images/run=b/{PART}\n",
        "images/run=b/part-00000.parquet/../../../victim",
        None,
        7,
    ],
)
def test_parts_that_lead_outside_are_refused(store: MemoryStore, path: object) -> None:
    def change(manifest: Any) -> None:
        manifest["files"][0]["path"] = path

    with pytest.raises(DamagedOutput, match="manifest-"):
        load_catalog(resealed(store, change))


def test_checks_hold_where_python_drops_assertions(store: MemoryStore) -> None:
    name = documents(store)["manifest"]
    document = json.loads(store.read(name)) | {"replaces": ["x/../../../victim"]}
    code = "import sys; from jobs.output.manifest import check_manifest; import json\n"
    code += "check_manifest('the manifest', json.load(sys.stdin))"
    done = subprocess.run(
        [sys.executable, "-O", "-c", code],
        input=json.dumps(document),
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1 and "DamagedOutput: the manifest of OUTPUT is damaged" in done.stderr
    )


@pytest.mark.parametrize("plan", ["../plan.parquet", "_runs/a/plan.parquet", "/etc/passwd", 3])
def test_plans_that_lead_outside_are_refused(store: MemoryStore, plan: object) -> None:
    with pytest.raises(DamagedOutput, match="manifest-"):
        load_catalog(resealed(store, lambda manifest: manifest.update(plan=plan)))


@pytest.mark.parametrize(
    "change",
    [
        {"number": 5},
        {"number": "4"},
        {"kind": "party"},
        {"token": "x"},
        {"token": None},
        {"holder": 3},
        {"adds": {"a": 1}},
        {"adds": [3]},
        {"removes": None},
        {"removes": [{"run_id": "nobody", "reason": "deleted"}]},
        {"removes": [{"run_id": "a", "reason": "boredom"}]},
        {"more": 1},
    ],
)
def test_an_entry_that_no_writer_writes_is_refused(
    store: MemoryStore, change: dict[str, Any]
) -> None:
    entry = json.loads(store.read(paths.entry(4)))["content"]
    refused(store, paths.entry(4), seal({**entry, **change}))


def test_a_writer_that_lost_never_commits(store: MemoryStore) -> None:
    first, second = LogWriter(store), LogWriter(store)
    first.fence()
    with pytest.raises(CommitLost):
        second.fence()
    third = LogWriter(store)
    third.fence()
    for _ in range(3):
        with pytest.raises(CommitLost):
            first.commit(labelled(first, "c"))
    assert not load_catalog(store).knows("c")


def test_what_no_reader_would_take_in_is_not_committed(store: MemoryStore) -> None:
    """One run was committed before; the other commit removes a run that does not count."""
    for run_id, removes in (("a", []), ("c", ["nobody"])):
        writer = LogWriter(store)
        writer.fence()
        with pytest.raises(AssertionError):
            writer.commit(labelled(writer, run_id), removes)
    assert [run["run_id"] for run in load_catalog(store).committed_runs()] == ["a", "b"]


def commit_as_of_old(
    store: MemoryStore, run_id: str, replaces: Sequence[str] = (), compacts: bool = False
) -> None:
    """Commit a run as versions before the log did; they then deleted the files it replaced."""
    name, data = f"images/run={run_id}/part-00000.parquet", part(rows_of(run_id), "old")
    store.write(name, data)
    manifest = manifest_of(run_id, TOKEN, [file_of_run(name, data)], replaces, compacts)
    document = {key: one for key, one in manifest.items() if key not in ("format", "plan")}
    store.write(f"{paths.RUNS}/{run_id}/manifest.json", json.dumps(document).encode())
    store.remove(f"images/run={gone}/part-00000.parquet" for gone in replaces)


def test_old_runs_that_a_slow_clock_named_are_adopted() -> None:
    """A host with a late clock merged two runs, so the merged run has the first name."""
    store = MemoryStore()
    for run_id in ("b", "c"):
        commit_as_of_old(store, run_id)
    commit_as_of_old(store, "a", ["b", "c"], compacts=True)
    for _ in range(2):
        catalog = load_catalog(store)
        assert [run["run_id"] for run in catalog.committed_runs()] == ["a"]
        assert [run["run_id"] for run in catalog.labelling_runs()] == ["b", "c"]
        LogWriter(store).fence()


def test_what_an_old_version_replaced_after_the_first_adoption_counts_no_more() -> None:
    """The old version could write again because the lock that shuts it out was deleted."""
    store = MemoryStore()
    commit_as_of_old(store, "a")
    LogWriter(store).fence()
    commit_as_of_old(store, "b", ["a"])
    LogWriter(store, adopt=True).fence()
    assert [run["run_id"] for run in load_catalog(store).committed_runs()] == ["b"]


@pytest.mark.parametrize("dead", [0, 1])
def test_checkpoints_are_kept_whatever_numbers_commits_have(dead: int) -> None:
    """A writer that died after its fence shifts the numbers of all later commits by one."""
    store = MemoryStore()
    for _ in range(dead):
        LogWriter(store).fence()
    for number in range(2 * CHECKPOINT_EVERY):
        commit(store, f"run-{number:04}")
    kept = [paths.number_of_checkpoint(name) for name in store.names(paths.LOG)]
    assert 3 <= len([number for number in kept if number]) <= 4


def long_log(entries: int, merged_every: int = 0) -> MemoryStore:
    """Make a log of alternating fences and commits, with checkpoints and, if wanted, merges."""
    store, state = MemoryStore(), State()
    content = dict(store.content)
    for number in range(1, entries + 1):
        token = f"{number:032x}"
        entry = Entry(number, "commit" if number % 2 == 0 else "fence", token, "host:1")
        if entry.kind == "commit":
            run_id = f"run-{number:06}"
            merges = bool(merged_every) and number // 2 % merged_every == 0
            name = paths.part_template(run_id, token).format(table="images", number=0)
            files = [file_of_run(name, part(rows_of(run_id), token))]
            manifest = manifest_of(run_id, token, files, [], merges)
            data = manifest_to_bytes(manifest)
            added = Added(run_id, paths.manifest(run_id, token), hashlib.sha256(data).hexdigest())
            gone = state.counting_runs() if merges else []
            removes = tuple(Removed(one, "compacted", run_id) for one in gone)
            entry = replace(entry, adds=(added,), removes=removes)
            content[added.manifest] = data
            state.manifests[run_id] = manifest
        state.apply(entry)
        content[paths.entry(number)] = entry.to_bytes()
        if number % CHECKPOINT_EVERY == 0 and number + 3 * CHECKPOINT_EVERY > entries:
            content[paths.checkpoint(number)] = checkpoint_to_bytes(state)
    return MemoryStore(content)


@pytest.mark.slow
@pytest.mark.measures
@pytest.mark.parametrize("merged_every", [0, 2])
def test_ten_thousand_entries_open_within_a_second(merged_every: int) -> None:
    """In one case commits label and merge in turn, so that the labels moved 2,500 times."""
    store = long_log(10_000, merged_every)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        catalog = load_catalog(store)
        seconds.append(time.perf_counter() - began)
    assert catalog.state.number == 10_000
    assert len(catalog.committed_runs()) == (1 if merged_every else 5000)
    assert len(catalog.labelling_runs()) == (2500 if merged_every else 5000)
    assert median(seconds) < 1


def test_documents_say_their_format(store: MemoryStore) -> None:
    for name in documents(store).values():
        assert json.loads(store.read(name))["format"] == FORMAT
