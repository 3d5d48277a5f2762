"""The only way to write an OUTPUT: read, fence, commit, and only then remove."""

import hashlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

from jobs.output import paths
from jobs.output.catalog import adopting, load
from jobs.output.errors import CommitLost, CommitUnknown
from jobs.output.log import (
    CHECKPOINT_EVERY,
    Added,
    Entry,
    Reason,
    Removed,
    State,
    checkpoint_to_bytes,
    entry_of_bytes,
    read_if_any,
)
from jobs.output.manifest import Manifest, manifest_to_bytes
from jobs.output.run_ids import LAST_TIME
from jobs.output.store import Store
from pipeline.storage.errors import InputError

log = logging.getLogger(__name__)


class LogWriter:
    """Appends to the log of a store, until another writer appends an entry.

    A writer reads the log, and creates a fence as the next entry. If that succeeds, nothing has
    changed since it read. It commits by creating the entry with the next number. If another writer
    has created that entry, this writer can never commit again.
    """

    def __init__(self, store: Store, adopt: bool = False):
        """Read the log. `adopt` says that versions before the log may have written meanwhile."""
        self.store = store
        self.token = uuid.uuid4().hex
        self.holder = f"{socket.gethostname()}:{os.getpid()}"
        self.fenced = False

        def begin(state: State) -> None:
            self.first = Entry(state.number + 1, "fence", self.token, self.holder)
            if adopt or not state.number:
                self.first = adopting(store, state, replace(self.first, kind="adopt"))
            # The entry is applied before it is written, so that plans know the adopted runs.
            state.apply(self.first)

        self.catalog = load(store, begin)

    def fence(self) -> None:
        """Fence off all writers that began before, and delete the files that they left; only once.

        Raises CommitLost if another writer began since this one read, CommitUnknown as `commit`.
        """
        if not self.fenced:
            self._append(self.first)
            self.fenced = True
            self.store.remove(self.abandoned_files())

    def _append(self, entry: Entry) -> None:
        """Create an entry. Raises CommitLost if its number is taken, CommitUnknown as `commit`."""
        if not self._create(entry):
            raise CommitLost(
                f"another run took OUTPUT over before entry {entry.number} of its log was written: "
                "nothing was committed. Run the same command again"
            )

    def _create(self, entry: Entry) -> bool:
        """Create a log entry. Returns False if another writer's entry has the number.

        Raises CommitLost if the entry can never appear, because a fence of this writer has the
        number. Raises CommitUnknown if the store does not say whether the entry exists; a request
        for it may still be under way then.
        """
        name = paths.entry(entry.number)
        try:
            if self.store.create(name, entry.to_bytes()):
                return True
        except InputError:  # a disk that has no hard links, on which nothing is ever created
            raise
        except Exception as error:  # stores raise many types, and none says whether it was created
            return self._settle(entry, error)
        return self._owner(name) == entry.token

    def _settle(self, entry: Entry, error: Exception) -> bool:
        """Find out whether a log entry was created after an error. Returns and raises as `_create`.

        If the entry is absent, its request may still arrive. This writer then creates a fence of
        that number, and the number belongs to whichever came first.
        """
        name = paths.entry(entry.number)
        fence = Entry(entry.number, "fence", uuid.uuid4().hex, self.holder)
        try:
            owner = self._owner(name)
            if owner is None:
                fenced = self.store.create(name, fence.to_bytes())
                owner = fence.token if fenced else self._owner(name)
        except Exception as again:
            raise CommitUnknown(
                f"the store does not say whether {name} was written ({again}): nothing was "
                "deleted, and what is labelled is kept. Run the same command again when it does"
            ) from error
        if owner == fence.token:
            raise CommitLost(
                f"the store did not write {name} ({error}): nothing was committed, and what is "
                "labelled is kept. Run the same command again"
            ) from error
        return owner == entry.token

    def _owner(self, name: str) -> str | None:
        """The token of the writer of a log entry. None if there is no such entry."""
        data = read_if_any(self.store, name)
        return None if data is None else entry_of_bytes(name, data).token

    def commit(
        self,
        run: Manifest | None,
        removes: Sequence[str] = (),
        reason: Reason = "replaced",
        kept_until: float = 0.0,
    ) -> None:
        """Commit a run, remove the runs `removes` in the same entry, and then delete their files.

        If the Unix time `kept_until` is in the future, the files stay, and a command after that
        time deletes them.

        Raises CommitLost if another writer came between: nothing has changed then, and no run of
        this writer will ever count. Raises CommitUnknown if the store does not say whether the
        entry exists: nothing may be deleted then.
        """
        state = self.catalog.state
        assert self.fenced
        # Readers refuse an entry that adds a run twice, or removes a run that was never added.
        assert run is None or run["run_id"] not in state.runs
        assert set(removes) <= set(state.counting_runs())
        adds = () if run is None else (self._write_manifest(run),)
        by = None if run is None else run["run_id"]
        removed = tuple(Removed(run_id, reason, by, kept_until) for run_id in removes)
        entry = Entry(state.number + 1, "commit", self.token, self.holder, adds, removed)
        self._append(entry)
        state.apply(entry)
        gone = [self.catalog.manifests[name] for name in removes if name in self.catalog.manifests]
        if run is not None:
            self.catalog.manifests[run["run_id"]] = run
        lost = self.catalog.drop_removed()
        self._keep_checkpoint()
        if kept_until <= time.time():
            self.store.remove(file["path"] for one in gone for file in one["files"])
        if reason == "deleted":
            for run_id in lost:
                self.store.remove(self.store.names(paths.run_folder(run_id)))

    def _write_manifest(self, run: Manifest) -> Added:
        name, data = paths.manifest(run["run_id"], self.token), manifest_to_bytes(run)
        self.store.write(name, data)
        return Added(run["run_id"], name, hashlib.sha256(data).hexdigest())

    def _keep_checkpoint(self) -> None:
        """Write a checkpoint every CHECKPOINT_EVERY entries, so that readers read fewer entries.

        A checkpoint is optional: readers can read all entries instead.
        """
        state = self.catalog.state
        if state.number - state.kept < CHECKPOINT_EVERY:
            return
        try:
            state.manifests = self.catalog.manifests
            self.store.create(paths.checkpoint(state.number), checkpoint_to_bytes(state))
            state.kept = state.number
        except Exception as error:  # the commit is valid without a checkpoint
            log.warning("no checkpoint of the log was written: %s", error)

    def abandoned_files(self) -> list[str]:
        """Names of parts and manifests whose runs never counted, or count no more.

        Only files of fenced writers are named. Files of a writer that began later are left alone,
        even if this writer was suspended meanwhile.
        """
        state, catalog = self.catalog.state, self.catalog
        counting = {file["path"] for run in catalog.committed_runs() for file in run["files"]}
        counting |= {state.runs[run_id].added.manifest for run_id in catalog.manifests}
        fenced = state.tokens - {self.token}
        now = time.time()
        retained = {
            name
            for name, run in state.runs.items()
            # A later time was written by a clock that was wrong.
            if run.removed and now < run.removed.kept_until < LAST_TIME
        }
        found = []
        for folder in (*paths.TABLES, paths.RUNS):
            for name in self.store.names(folder):
                parsed = paths.run_and_token_of_part(name)
                parsed = parsed or paths.run_and_token_of_manifest(name)
                if parsed is None or name in counting or parsed[0] in retained:
                    continue
                if parsed[1] is None or parsed[1] in fenced:
                    found.append(name)
        return found
