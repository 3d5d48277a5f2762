"""The log of commits: numbered entries. An entry is created whole, and only if its name is free.

The entries, first to last, define what OUTPUT holds. An entry is never changed or removed. A run
counts from the entry that adds it until an entry removes it: readers see the labels of runs that
count.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar, get_args

from jobs.output import paths
from jobs.output.documents import convert_document, damaged_document, require, seal, unseal
from jobs.output.errors import DamagedOutput
from jobs.output.manifest import Manifest, check_manifest
from jobs.output.store import Store

READ_AT_ONCE = 16  # entries or manifests fetched at once, because latency limits them
CHECKPOINT_EVERY = 32  # log entries

Item = TypeVar("Item")
Result = TypeVar("Result")
Kind = Literal["adopt", "fence", "commit"]
Reason = Literal["replaced", "compacted", "deleted"]


@dataclass(frozen=True)
class Added:
    """A run that counts from this log entry on."""

    run_id: str
    manifest: str  # name of the manifest below OUTPUT
    sha256: str  # digest of the manifest


@dataclass(frozen=True)
class Removed:
    """A run that counts no more from this log entry on."""

    run_id: str
    reason: Reason
    by: str | None = None  # id of the run that replaced it, if any
    kept_until: float = 0.0  # Unix time until which its files stay


@dataclass(frozen=True)
class Entry:
    """One entry of the log. Every kind of entry fences off the writers that began before it."""

    number: int
    kind: Kind
    token: str  # of the writer that created the entry
    holder: str  # host and process of that writer, for people
    adds: tuple[Added, ...] = ()
    removes: tuple[Removed, ...] = ()

    def to_bytes(self) -> bytes:
        return seal(asdict(self))


def entry_of_bytes(name: str, data: bytes) -> Entry:
    """Parse the log entry `name`. Raises DamagedOutput if `data` is no log entry of that name."""
    document = unseal(name, data)

    def convert() -> Entry:
        adds = tuple(Added(**one) for one in document["adds"])
        removes = tuple(Removed(**one) for one in document["removes"])
        entry = Entry(**{**document, "adds": adds, "removes": removes})
        check_entry(entry, paths.number_of_entry(name))
        return entry

    return convert_document(name, convert)


def check_entry(entry: Entry, number: int | None) -> None:
    """Raise ValueError for fields that no writer writes. Names must not lead out of OUTPUT."""
    require(type(entry.number) is int and entry.number == number)
    require(entry.kind in get_args(Kind))
    require(paths.is_token(entry.token) and isinstance(entry.holder, str))
    for one in entry.adds:
        check_added(one)
    for gone in entry.removes:
        check_removed(gone)


def check_removed(gone: Removed) -> None:
    require(paths.is_run_id(gone.run_id) and gone.reason in get_args(Reason))
    require(gone.by is None or paths.is_run_id(gone.by))
    require(isinstance(gone.kept_until, int | float) and math.isfinite(gone.kept_until))


def check_added(one: Added) -> None:
    found = paths.run_and_token_of_manifest(one.manifest)
    require(found is not None and found[0] == one.run_id and len(one.sha256) == 64)


@dataclass
class RunState:
    """A run that a log entry added, and its removal, if it was removed."""

    added: Added
    removed: Removed | None = None


@dataclass
class State:
    """The state of OUTPUT after the log entry `number`."""

    number: int = 0
    # By run id, in the order of their log entries.
    runs: dict[str, RunState] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)  # tokens of all writers so far
    # Manifests that the checkpoint holds. Other manifests are read from their own files.
    manifests: dict[str, Manifest] = field(default_factory=dict)
    kept: int = 0  # the number of the newest checkpoint that is known

    def apply(self, entry: Entry) -> None:
        """Apply the next log entry.

        Raises DamagedOutput if the entry adds a run twice, or removes a run that was never added.
        """
        assert entry.number == self.number + 1
        for one in entry.adds:
            if one.run_id in self.runs:
                raise damaged_document(paths.entry(entry.number))
            self.runs[one.run_id] = RunState(one)
        for gone in entry.removes:
            if gone.run_id not in self.runs:
                raise damaged_document(paths.entry(entry.number))
            self.runs[gone.run_id].removed = gone
        self.tokens.add(entry.token)
        self.number = entry.number

    def counting_runs(self) -> list[str]:
        """Ids of the runs that count, oldest first, because the ids sort by age."""
        return sorted(name for name, run in self.runs.items() if run.removed is None)

    def living_runs(self) -> set[str]:
        """Ids of the runs whose labels OUTPUT holds, in their own tables or in merged tables."""
        merged: dict[str | None, list[str]] = {}  # by the id of the run that they were merged into
        for run_id, run in self.runs.items():
            if run.removed is not None and run.removed.reason == "compacted":
                merged.setdefault(run.removed.by, []).append(run_id)
        found: set[str] = set()
        left = self.counting_runs()
        while left:
            run_id = left.pop()
            found.add(run_id)
            left += merged.get(run_id, ())
        return found


def read_state(store: Store) -> State:
    """Read the newest checkpoint and all log entries behind it.

    A log without entries gives a state of number 0. Raises DamagedOutput if a document is not as it
    was written, or a log entry is missing.
    """
    names = store.names(paths.LOG)
    entries = [n for n in map(paths.number_of_entry, names) if n is not None]
    checkpoints = [n for n in map(paths.number_of_checkpoint, names) if n is not None]
    state = read_checkpoint(store, max(checkpoints)) if checkpoints else State()
    for entry in read_entries(store, state.number + 1, max(entries, default=0)):
        state.apply(entry)
    # The names were listed before the entries were read, so all listed entries must be readable.
    if entries and max(entries) > state.number:
        missing, last = paths.entry(state.number + 1), paths.entry(max(entries))
        raise DamagedOutput(
            f"{missing} of OUTPUT is missing, and {last} is there: put it back, from a backup or "
            "an older version of the object"
        )
    return state


def read_entries(store: Store, number: int, listed: int) -> Iterator[Entry]:
    """Read log entries from `number` on, until one is missing.

    `listed` is the number of the newest entry in a listing. A listing may lack newer entries, so
    reading goes on behind it, one by one.
    """
    while True:
        count = max(1, min(READ_AT_ONCE, listed - number + 1))
        names = [paths.entry(n) for n in range(number, number + count)]
        found = map_at_once(partial(read_if_any, store), names)
        for name, data in zip(names, found, strict=True):
            if data is None:
                return
            yield entry_of_bytes(name, data)
        number += count


def map_at_once(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call a function with each item, READ_AT_ONCE at a time. Results have the order of the items.

    It returns a list, not an iterator: a thread pool that the garbage collector closes may wait for
    itself for ever.
    """
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        return list(pool.map(function, items))


def read_if_any(store: Store, name: str) -> bytes | None:
    """Read an object. None if it does not exist."""
    try:
        return store.read(name)
    except FileNotFoundError:
        return None


def checkpoint_to_bytes(state: State) -> bytes:
    """Serialize a whole state, with the manifests of the runs whose labels OUTPUT holds."""
    return seal(
        {
            "number": state.number,
            "runs": [asdict(run) for run in state.runs.values()],
            "tokens": sorted(state.tokens),
            "manifests": state.manifests,
        }
    )


def read_checkpoint(store: Store, number: int) -> State:
    """Read the state after the log entry `number`. Raises DamagedOutput if it is damaged."""
    name = paths.checkpoint(number)
    document = unseal(name, store.read(name))

    def convert() -> State:
        require(document["number"] == number)
        state = State(number, {}, set(document["tokens"]), kept=number)
        require(all(map(paths.is_token, state.tokens)))
        for one in document["runs"]:
            added, gone = Added(**one["added"]), one["removed"]
            check_added(added)
            removed = Removed(**gone) if gone else None
            if removed is not None:
                check_removed(removed)
            state.runs[added.run_id] = RunState(added, removed)
        for run_id, manifest in document["manifests"].items():
            require(manifest["run_id"] == run_id)
            state.manifests[run_id] = check_manifest(name, manifest)
        return state

    return convert_document(name, convert)


def next_entry(state: State, kind: Kind, token: str, holder: str) -> Entry:
    """The log entry that follows a state, without runs."""
    return Entry(state.number + 1, kind, token, holder)


def with_runs(entry: Entry, adds: tuple[Added, ...], removes: tuple[Removed, ...]) -> Entry:
    return replace(entry, adds=adds, removes=removes)
