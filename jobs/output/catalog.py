"""The catalog of an OUTPUT: the runs that it holds, read from its log."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from jobs.output import paths
from jobs.output.documents import convert_document, damaged_document, parse_json
from jobs.output.errors import DamagedOutput
from jobs.output.log import (
    Added,
    Entry,
    Removed,
    State,
    map_at_once,
    read_if_any,
    read_state,
)
from jobs.output.manifest import Manifest, check_manifest, manifest_of_bytes
from jobs.output.store import OutputStore, Store
from pipeline.storage.explained_errors import explain_errors


@dataclass
class Catalog:
    """The runs of an OUTPUT up to one entry of its log, with their manifests."""

    state: State
    manifests: dict[str, Manifest]  # by run id, of runs whose labels OUTPUT still holds

    def committed_runs(self) -> list[Manifest]:
        """Manifests of the runs that count, oldest first."""
        return [self.manifests[run_id] for run_id in self.state.counting_runs()]

    def labelling_runs(self) -> list[Manifest]:
        """Manifests of the runs that made the labels OUTPUT holds, oldest first.

        Runs whose tables `compact` merged are included. The runs that `compact` made are not.
        """
        return [run for _, run in sorted(self.manifests.items()) if not run["compacts"]]

    def runs_replaced_by(self, run: Manifest) -> list[str]:
        """Ids of the runs of `label` whose labels OUTPUT held until `run` replaced them.

        Those that `compact` had merged are included. The runs that `compact` made are not.
        """
        removed = {name: one.removed for name, one in self.state.runs.items() if one.removed}
        made = {one.by for one in removed.values() if one.reason == "compacted"}
        found: set[str] = set()
        left = [name for name in run["replaces"] if name in removed]
        while left:
            by = left.pop()
            found.add(by)
            left += [
                name for name, one in removed.items() if one.reason == "compacted" and one.by == by
            ]
        return sorted(found - made)

    def drop_removed(self) -> list[str]:
        """Drop the manifests of runs whose labels OUTPUT holds no more; return their run ids."""
        gone = sorted(self.manifests.keys() - self.state.living_runs())
        for run_id in gone:
            del self.manifests[run_id]
        return gone

    def knows(self, run_id: str) -> bool:
        """Whether a run was ever committed, even if it was removed later."""
        return run_id in self.state.runs


def read_catalog(output: str) -> Catalog:
    """Read the catalog. Raises InputError if OUTPUT is unreadable, DamagedOutput if damaged."""
    store = OutputStore(output)
    with explain_errors("OUTPUT", output):
        return load_catalog(store)


def committed_runs(output: str) -> list[Manifest]:
    """Manifests of the runs that count, oldest first."""
    return read_catalog(output).committed_runs()


def load_catalog(store: Store) -> Catalog:
    """Read the catalog of a store.

    A store without a log has the runs that versions before the log committed.
    """

    def begin(state: State) -> None:
        if not state.number:
            state.apply(adopting(store, state, Entry(1, "adopt", "0" * 32, "")))

    return load(store, begin)


def load(store: Store, begin: Callable[[State], None]) -> Catalog:
    """Read the log of a store, let `begin` change its state, then read the manifests.

    The log is read again if it grew meanwhile and a manifest that it names has been deleted.
    """
    while True:
        state = read_state(store)
        last = state.number
        begin(state)
        try:
            catalog = with_manifests(store, state)
        except DamagedOutput:
            if not _has_entry(store, last + 1):
                raise
        else:
            # Without a log the runs come from a listing, which is out of date once entry 1 exists.
            if last or not _has_entry(store, 1):
                return catalog


def _has_entry(store: Store, number: int) -> bool:
    return read_if_any(store, paths.entry(number)) is not None


def with_manifests(store: Store, state: State) -> Catalog:
    """Add the manifests of living runs to a state. Raises DamagedOutput if one is missing."""
    wanted = state.living_runs()
    unread = sorted(wanted - state.manifests.keys())

    def read(run_id: str) -> Manifest | None:
        added = state.runs[run_id].added
        data = read_if_any(store, added.manifest)
        return None if data is None else manifest_of_bytes(added.manifest, data, added.sha256)

    found = dict(zip(unread, map_at_once(read, unread), strict=True))
    known = {**state.manifests, **{name: one for name, one in found.items() if one is not None}}
    if missing := sorted(wanted - known.keys()):
        raise damaged_document(state.runs[missing[0]].added.manifest)
    return Catalog(state, {name: known[name] for name in wanted})


def adopting(store: Store, state: State, entry: Entry) -> Entry:
    """A copy of `entry` that adds the runs that versions before the log committed.

    Runs that an earlier entry added are left out.
    """
    found = [pair for pair in old_runs(store) if pair[0].run_id not in state.runs]
    counting = {added.run_id for added, _ in found} | set(state.counting_runs())
    removes = tuple(
        Removed(run_id, "compacted" if one["compacts"] else "replaced", one["run_id"])
        for _, one in found
        for run_id in one["replaces"]
        if run_id in counting
    )
    return replace(entry, adds=tuple(added for added, _ in found), removes=removes)


def old_runs(store: Store) -> Iterator[tuple[Added, Manifest]]:
    """Runs that versions before the log committed, found by listing their manifests."""
    for name in store.names(paths.RUNS):
        found = paths.run_and_token_of_manifest(name)
        data = read_if_any(store, name) if found is not None and found[1] is None else None
        if found is None or data is None:  # no old manifest, or deleted since the listing
            continue
        document = convert_document(name, partial(parse_json, data))
        digest = hashlib.sha256(data).hexdigest()
        yield Added(found[0], name, digest), check_manifest(name, document)
