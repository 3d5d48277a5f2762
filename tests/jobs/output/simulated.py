"""A simulated store, and writers that run the real commit code over it, an operation at a time.

A writer is a function of the answers that its store gave. So its code is run with the answers so
far, up to the operation whose answer is not known yet (`Unanswered` ends it there): what it does
next is found once and remembered, for all schedules in which it saw the same. A program is cut into
stages, and all that a stage hands to the next is its `Desk`: writers whose desks are equal are one,
whatever they saw before.
"""

import gc
import pickle
import sys
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple

import pytest

from jobs.output import catalog, log, log_writer, paths
from jobs.output.errors import CommitLost, CommitUnknown
from jobs.output.log_writer import LogWriter
from jobs.output.manifest import FileOfRun, Manifest

LATER = 1e9  # Unix time; clocks say 0 or this

Content = Mapping[str, bytes]


class Special(Enum):
    """Answers that are errors."""

    ABSENT = "there is no such object"
    FAILED = "the request fails"


Answer = bytes | bool | tuple[str, ...] | Special


class Operation(NamedTuple):
    """What a writer asks of its store, or of its clock."""

    kind: Literal["read", "create", "write", "names", "remove", "length", "clock"]
    name: str
    data: bytes = b""


class Unanswered(BaseException):
    """A writer asked what is not answered yet: no error, as its code must not handle it."""


class Injected(ConnectionError):
    """A request fails."""


class Violation(AssertionError):
    """A rule does not hold."""


def answered(content: Content, operation: Operation) -> Answer:
    """What a store that works says."""
    kind, name, _ = operation
    if kind == "read":
        return content.get(name, Special.ABSENT)
    if kind in ("names", "length"):
        return tuple(sorted(one for one in content if one.startswith(f"{name}/")))
    return kind != "create" or name not in content


def changed(content: Content, operation: Operation) -> Content:
    """What a store holds after an operation."""
    kind, name, data = operation
    if kind == "remove" and name in content:
        return {one: kept for one, kept in content.items() if one != name}
    if kind == "write" or (kind == "create" and name not in content):
        return {**content, name: data}
    return content


class MemoryStore:
    """A store that works, for one at a time."""

    def __init__(self, content: Content | None = None):
        self.content: Content = dict(content or {})

    def ask(self, operation: Operation) -> Answer:
        answer = answered(self.content, operation)
        self.content = changed(self.content, operation)
        return answer

    def read(self, name: str) -> bytes:
        answer = self.ask(Operation("read", name))
        if answer is Special.ABSENT:
            raise FileNotFoundError(name)
        assert isinstance(answer, bytes)
        return answer

    def create(self, name: str, data: bytes) -> bool:
        return self.ask(Operation("create", name, data)) is True

    def write(self, name: str, data: bytes) -> None:
        self.ask(Operation("write", name, data))

    def names(self, folder: str) -> list[str]:
        answer = self.ask(Operation("names", folder))
        assert isinstance(answer, tuple)
        return list(answer)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self.ask(Operation("remove", name))

    def length(self) -> int:
        """How long the log is by now: no writer may ask this, but who judges a reader."""
        answer = self.ask(Operation("length", paths.LOG))
        assert isinstance(answer, tuple)
        return sum(paths.number_of_entry(name) is not None for name in answer)


class ReplayedStore(MemoryStore):
    """Gives answers in turn, and ends a writer's code where there are no more."""

    def __init__(self, answers: Sequence[Answer]):
        super().__init__()
        self.answers = iter(answers)
        self.asked: Operation | None = None

    def ask(self, operation: Operation) -> Answer:
        if self.asked is not None:
            sys.exit("a writer's code goes on where nothing is answered")
        answer = next(self.answers, None)
        if answer is None:
            self.asked = operation
            raise Unanswered
        if answer is Special.FAILED:
            raise Injected(operation.name)
        return answer


class Outcome(NamedTuple):
    """How a writer ended, and what it says then."""

    kind: Literal["done", "lost", "ended", "read"]
    commits: int = 0  # that returned
    seen: tuple[tuple[str, ...], ...] = ()  # by a reader: runs that count, runs that labelled
    since: int = 0  # the log's last entry when it began


@dataclass
class Desk:
    """All that a stage of a program hands to the next."""

    slot: int  # which of the writers this is
    program: str
    make: type[LogWriter] = LogWriter
    stage: int = 0
    tokens: int = 0  # that were made
    log: LogWriter | None = None
    files: list[FileOfRun] = field(default_factory=list)
    run: Manifest | None = None
    removes: list[str] = field(default_factory=list)
    commits: int = 0  # that returned
    since: int = 0  # the log's last entry when a reader began

    @property
    def writer(self) -> LogWriter:
        assert self.log is not None
        return self.log


Stage = Callable[[Desk, MemoryStore], Outcome | None]


@dataclass(frozen=True)
class Program:
    """What a writer does, and what it does when its commit is lost."""

    stages: tuple[Stage, ...]
    clean_up: Callable[[Desk, MemoryStore], None]
    cleans_up_after: tuple[type[Exception], ...] = (CommitLost,)
    allowed: tuple[type[Exception], ...] = ()  # besides what a failed request raises


def token(slot: int, program: str, number: int = 0) -> str:
    """The tokens that a writer makes, in turn; its first one is its own, and tells its program."""
    return f"{slot:08x}{zlib.crc32(program.encode()):08x}{number:016x}"


class Outside:
    """Stands for `uuid` and `time` in the product's code: what it asks besides its store."""

    desk: Desk  # of the writer whose code runs
    clock: MemoryStore | None = None  # who says what time it is, where that matters

    @classmethod
    def uuid4(cls) -> uuid.UUID:
        cls.desk.tokens += 1
        return uuid.UUID(hex=token(cls.desk.slot, cls.desk.program, cls.desk.tokens - 1))

    @classmethod
    def time(cls) -> float:
        if cls.clock is None:
            return 0.0
        return LATER if cls.clock.ask(Operation("clock", "")) is True else 0.0


@contextmanager
def real_code() -> Iterator[None]:
    """The product's code with tokens that repeat themselves, and without threads."""
    often = gc.get_threshold()
    gc.set_threshold(1_000_000)  # as much is made here that stays
    with pytest.MonkeyPatch.context() as patch:
        for module in ("uuid", "time"):
            patch.setattr(log_writer, module, Outside)
        for user in (log, catalog):
            patch.setattr(user, "map_at_once", map)
        yield
    gc.set_threshold(*often)


def played(program: Program, desk: Desk, content: Content, stages: int = 99) -> Content:
    """What a store holds after one undisturbed writer, or its first stages."""
    Outside.desk, Outside.clock = desk, None
    store = MemoryStore(content)
    for stage in program.stages[:stages]:
        if desk.log is not None:
            desk.log.store = store
        stage(desk, store)
    return store.content


@dataclass(frozen=True)
class Node:
    """A writer that waits for an answer, or has ended."""

    slot: int
    program: str
    root: bytes = b""  # its desk when the stage began
    answers: tuple[Answer, ...] = ()  # since then
    operation: Operation | None = None
    outcome: Outcome | None = None


class Writers:
    """All that writers do, found by running their code once for all answers that they can get."""

    def __init__(
        self,
        programs: Mapping[str, Program],
        make: type[LogWriter] = LogWriter,
        clocks: bool = False,
    ):
        """`clocks`: whether writers ask what time it is, and get any answer."""
        self.programs, self.make, self.clocks = programs, make, clocks
        self.nodes: list[Node] = []
        self._known: dict[Any, int] = {}
        self._next: dict[tuple[int, Answer], int] = {}

    def start(self, slot: int, program: str) -> int:
        return self._begin(Desk(slot, program, self.make))

    def step(self, node: int, answer: Answer) -> int:
        """Where a writer stands after an answer."""
        found = self._next.get((node, answer))
        if found is None:
            at = self.nodes[node]
            found = self._run(at.root, (*at.answers, answer))
            self._next[node, answer] = found
        return found

    def _begin(self, desk: Desk) -> int:
        """A writer at the beginning of a stage."""
        key = canonical(desk)
        if key not in self._known:
            self._known[key] = self._run(pickle.dumps(desk), ())
        return self._known[key]

    def _run(self, root: bytes, answers: tuple[Answer, ...]) -> int:
        """Run the code of a stage until it asks what is not answered, or ends."""
        desk: Desk = pickle.loads(root)
        store = ReplayedStore(answers)
        Outside.desk, Outside.clock = desk, store if self.clocks else None
        if desk.log is not None:
            desk.log.store = store
        try:
            outcome = self._outcome(self.programs[desk.program], desk, store)
        except Unanswered:
            return self._add(Node(desk.slot, desk.program, root, answers, store.asked))
        assert next(store.answers, None) is None
        desk.stage += 1
        if outcome is None and desk.stage == len(self.programs[desk.program].stages):
            outcome = Outcome("done", desk.commits)
        if outcome is None:
            if desk.log is not None:
                del desk.log.store
            return self._begin(desk)
        key = (desk.slot, desk.program, outcome)
        if key not in self._known:
            self._known[key] = self._add(Node(desk.slot, desk.program, outcome=outcome))
        return self._known[key]

    def _outcome(self, program: Program, desk: Desk, store: MemoryStore) -> Outcome | None:
        """What comes of a stage: None where the next one follows."""
        expected: tuple[type[Exception], ...] = (CommitLost, CommitUnknown, Injected)
        try:
            return program.stages[desk.stage](desk, store)
        except Exception as error:
            if not isinstance(error, expected + program.allowed):
                said = f"{type(error).__name__}: {error}"
                raise Violation(f"{desk.program} of writer {desk.slot} ends in {said}") from error
            if isinstance(error, program.cleans_up_after):
                with suppress(Injected):
                    program.clean_up(desk, store)
            return Outcome("lost" if isinstance(error, CommitLost) else "ended", desk.commits)

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1


def canonical(value: Any) -> Any:
    """Something that is equal for what is equal, and can be a key."""
    if isinstance(value, Desk | LogWriter | catalog.Catalog | log.State | log.RunState):
        return tuple((name, canonical(one)) for name, one in sorted(vars(value).items()))
    if isinstance(value, dict):
        pairs = list(value.items())
        if not isinstance(pairs and pairs[0][1], log.RunState):  # which are in order
            pairs.sort()
        return tuple((key, canonical(one)) for key, one in pairs)
    if isinstance(value, list):
        return tuple(map(canonical, value))
    return frozenset(value) if isinstance(value, set) else value
