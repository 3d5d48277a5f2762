"""The log of commits: numbered entries, each created whole and only where there is none.

What OUTPUT holds is what the entries say, first to last. An entry is never changed or removed.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar, get_args

from jobs.output import paths
from jobs.output.documents import convert_document, damaged_document, seal, unseal
from jobs.output.errors import DamagedOutput
from jobs.output.manifest import Manifest, check_manifest
from jobs.output.store import Store

READ_AT_ONCE = 16  # entries or manifests fetched together: latency limits them
CHECKPOINT_EVERY = 32  # entries

Item = TypeVar("Item")
Result = TypeVar("Result")
Kind = Literal["adopt", "fence", "commit"]
Reason = Literal["replaced", "compacted", "deleted"]


@dataclass(frozen=True)
class Added:
    """A run that an entry lets count."""

    run_id: str
    manifest: str  # its name below OUTPUT
    sha256: str  # of the manifest


@dataclass(frozen=True)
class Removed:
    """A run that an entry lets count no more."""

    run_id: str
    reason: Reason
    by: str | None = None  # the run that took its place, if any
    kept_until: float = 0.0  # Unix time before which its files stay


@dataclass(frozen=True)
class Entry:
    """One line of the log. Every kind fences off the writers that began before it."""

    number: int
    kind: Kind
    token: str  # of its writer
    holder: str  # its writer, for people
    adds: tuple[Added, ...] = ()
    removes: tuple[Removed, ...] = ()

    def to_bytes(self) -> bytes:
        return seal(asdict(self))


def entry_of_bytes(name: str, data: bytes) -> Entry:
    """The entry of that name. DamagedOutput where it is none."""
    document = unseal(name, data)

    def convert() -> Entry:
        adds = tuple(Added(**one) for one in document["adds"])
        removes = tuple(Removed(**one) for one in document["removes"])
        entry = Entry(**{**document, "adds": adds, "removes": removes})
        check_entry(entry, paths.number_of_entry(name))
        return entry

    return convert_document(name, convert)


def check_entry(entry: Entry, number: int | None) -> None:
    """AssertionError for fields that no writer writes: names must not lead out of OUTPUT."""
    assert type(entry.number) is int and entry.number == number
    assert entry.kind in get_args(Kind)
    assert paths.is_token(entry.token) and isinstance(entry.holder, str)
    for one in entry.adds:
        check_added(one)
    for gone in entry.removes:
        check_removed(gone)


def check_removed(gone: Removed) -> None:
    assert paths.is_run_id(gone.run_id) and gone.reason in get_args(Reason)
    assert gone.by is None or paths.is_run_id(gone.by)
    assert isinstance(gone.kept_until, int | float) and math.isfinite(gone.kept_until)


def check_added(one: Added) -> None:
    found = paths.run_and_token_of_manifest(one.manifest)
    assert found is not None and found[0] == one.run_id and len(one.sha256) == 64


@dataclass
class RunState:
    """A run that was added, and what became of it."""

    added: Added
    removed: Removed | None = None


@dataclass
class State:
    """What the entries up to `number` say."""

    number: int = 0
    runs: dict[str, RunState] = field(default_factory=dict)  # in the order of their entries
    tokens: set[str] = field(default_factory=set)  # of all writers so far
    # Those that a checkpoint had; others are read where they lie.
    manifests: dict[str, Manifest] = field(default_factory=dict)
    kept: int = 0  # the number of the last checkpoint that is known of

    def apply(self, entry: Entry) -> None:
        """Take in the next entry. DamagedOutput where it speaks of runs that there are not."""
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
        """Runs that count, by name: oldest first."""
        return sorted(name for name, run in self.runs.items() if run.removed is None)

    def living_runs(self) -> set[str]:
        """Runs whose labels are there, in their own tables or in those they were merged into."""
        merged: dict[str | None, list[str]] = {}  # by the run that they were merged into
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
    """What the log says by now. A log without entries gives a state of number 0.

    DamagedOutput for a document that is not as it was written, or an entry that is missing.
    """
    names = store.names(paths.LOG)
    entries = [n for n in map(paths.number_of_entry, names) if n is not None]
    checkpoints = [n for n in map(paths.number_of_checkpoint, names) if n is not None]
    state = read_checkpoint(store, max(checkpoints)) if checkpoints else State()
    for entry in read_entries(store, state.number + 1):
        state.apply(entry)
    # The listing came first: what it has was there before the reading began.
    if entries and max(entries) > state.number:
        missing, last = paths.entry(state.number + 1), paths.entry(max(entries))
        raise DamagedOutput(
            f"{missing} of OUTPUT is missing, and {last} is there: put it back, from a backup or "
            "an older version of the object"
        )
    return state


def read_entries(store: Store, number: int) -> Iterator[Entry]:
    """Entries from a number on, until one is missing: a listing may lack the newest."""
    while True:
        names = [paths.entry(n) for n in range(number, number + READ_AT_ONCE)]
        found = map_at_once(partial(read_if_any, store), names)
        for name, data in zip(names, found, strict=True):
            if data is None:
                return
            yield entry_of_bytes(name, data)
        number += READ_AT_ONCE


def map_at_once(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What a function makes of each item, in their order; READ_AT_ONCE are waited for together.

    All of it: a pool that is left to the collection of garbage may wait for itself for ever.
    """
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        return list(pool.map(function, items))


def read_if_any(store: Store, name: str) -> bytes | None:
    """An object; None where there is none."""
    try:
        return store.read(name)
    except FileNotFoundError:
        return None


def checkpoint_to_bytes(state: State) -> bytes:
    """All of a state, manifests of runs whose labels are there included."""
    return seal(
        {
            "number": state.number,
            "runs": [asdict(run) for run in state.runs.values()],
            "tokens": sorted(state.tokens),
            "manifests": state.manifests,
        }
    )


def read_checkpoint(store: Store, number: int) -> State:
    """The state that was kept when an entry was the last. DamagedOutput where it is not that."""
    name = paths.checkpoint(number)
    document = unseal(name, store.read(name))

    def convert() -> State:
        assert document["number"] == number
        state = State(number, {}, set(document["tokens"]), kept=number)
        assert all(map(paths.is_token, state.tokens))
        for one in document["runs"]:
            added, gone = Added(**one["added"]), one["removed"]
            check_added(added)
            removed = Removed(**gone) if gone else None
            if removed is not None:
                check_removed(removed)
            state.runs[added.run_id] = RunState(added, removed)
        for run_id, manifest in document["manifests"].items():
            assert manifest["run_id"] == run_id
            state.manifests[run_id] = check_manifest(name, manifest)
        return state

    return convert_document(name, convert)


def next_entry(state: State, kind: Kind, token: str, holder: str) -> Entry:
    """An entry behind a state, without runs yet."""
    return Entry(state.number + 1, kind, token, holder)


def with_runs(entry: Entry, adds: tuple[Added, ...], removes: tuple[Removed, ...]) -> Entry:
    return replace(entry, adds=adds, removes=removes)
