"""A simulated store, and writers that run the real commit code over it, one operation at a time.

What a writer does depends only on the answers of its store. So its code is run with the answers so
far, up to the first operation without an answer, where `Unanswered` ends it. This operation is
found once, and remembered for all schedules in which the writer got the same answers. A program
consists of stages, and a stage hands only a `WriterState` to the next one. Writers in equal states
are treated as one, whatever answers led there.
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

LATER = 1e9  # Unix time; a clock shows 0 or this

Content = Mapping[str, bytes]


class Special(Enum):
    """Answers that are errors."""

    ABSENT = "there is no such object"
    FAILED = "the request fails"


Answer = bytes | bool | tuple[str, ...] | Special


class Operation(NamedTuple):
    """A request of a writer to its store, or to its clock."""

    kind: Literal["read", "create", "write", "names", "remove", "length", "clock"]
    name: str
    data: bytes = b""


class Unanswered(BaseException):
    """Ends a writer's code at a request without an answer; the code must not handle it."""


class Injected(ConnectionError):
    """A request fails."""


class Violation(AssertionError):
    """A rule does not hold."""


def answer_of_store(content: Content, operation: Operation) -> Answer:
    """Return the answer of a store that works."""
    kind, name, _ = operation
    if kind == "read":
        return content.get(name, Special.ABSENT)
    if kind in ("names", "length"):
        return tuple(sorted(one for one in content if one.startswith(f"{name}/")))
    return kind != "create" or name not in content


def content_after(content: Content, operation: Operation) -> Content:
    """Return what a store holds after an operation."""
    kind, name, data = operation
    if kind == "remove" and name in content:
        return {one: found for one, found in content.items() if one != name}
    if kind == "write" or (kind == "create" and name not in content):
        return {**content, name: data}
    return content


class MemoryStore:
    """A store that works, for one writer at a time."""

    def __init__(self, content: Content | None = None):
        self.content: Content = dict(content or {})

    def ask(self, operation: Operation) -> Answer:
        answer = answer_of_store(self.content, operation)
        self.content = content_after(self.content, operation)
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
        """Return the length of the log, to judge a reader; writers must not use this."""
        answer = self.ask(Operation("length", paths.LOG))
        assert isinstance(answer, tuple)
        return sum(paths.number_of_entry(name) is not None for name in answer)


class ReplayedStore(MemoryStore):
    """Gives its answers in turn, and ends a writer's code when there are no more."""

    def __init__(self, answers: Sequence[Answer]):
        super().__init__()
        self.answers = iter(answers)
        self.unanswered: Operation | None = None

    def ask(self, operation: Operation) -> Answer:
        if self.unanswered is not None:
            sys.exit("a writer's code goes on after a request without an answer")
        answer = next(self.answers, None)
        if answer is None:
            self.unanswered = operation
            raise Unanswered
        if answer is Special.FAILED:
            raise Injected(operation.name)
        return answer


class Outcome(NamedTuple):
    """How a writer ended, and what it reports."""

    kind: Literal["done", "lost", "ended", "read"]
    commits: int = 0  # commits that returned
    seen: tuple[tuple[str, ...], ...] = ()  # runs that count and that labelled, as a reader saw
    since: int = 0  # the log's last entry when it began


@dataclass
class WriterState:
    """Everything that a stage of a program hands to the next one."""

    slot: int  # which of the writers this is
    program: str
    make: type[LogWriter] = LogWriter
    stage: int = 0
    tokens: int = 0  # how many tokens were made
    log: LogWriter | None = None
    files: list[FileOfRun] = field(default_factory=list)
    run: Manifest | None = None
    removes: list[str] = field(default_factory=list)
    commits: int = 0  # commits that returned
    since: int = 0  # the log's last entry when a reader began

    @property
    def writer(self) -> LogWriter:
        assert self.log is not None
        return self.log


Stage = Callable[[WriterState, MemoryStore], Outcome | None]


@dataclass(frozen=True)
class Program:
    """The stages of a writer, and how it cleans up after a lost commit."""

    stages: tuple[Stage, ...]
    clean_up: Callable[[WriterState, MemoryStore], None]
    cleans_up_after: tuple[type[Exception], ...] = (CommitLost,)
    allowed: tuple[type[Exception], ...] = ()  # errors beside those of a failed request


def token(slot: int, program: str, number: int = 0) -> str:
    """The tokens of a writer, by number; the first is its own, and each names its program."""
    return f"{slot:08x}{zlib.crc32(program.encode()):08x}{number:016x}"


class Outside:
    """Replaces `uuid` and `time` in the product's code, which asks nothing else but its store."""

    state: WriterState  # state of the writer whose code runs
    clock: MemoryStore | None = None  # the store that answers what time it is, if that matters

    @classmethod
    def uuid4(cls) -> uuid.UUID:
        cls.state.tokens += 1
        return uuid.UUID(hex=token(cls.state.slot, cls.state.program, cls.state.tokens - 1))

    @classmethod
    def time(cls) -> float:
        if cls.clock is None:
            return 0.0
        return LATER if cls.clock.ask(Operation("clock", "")) is True else 0.0


@contextmanager
def real_code() -> Iterator[None]:
    """Run the product's code with predictable tokens, and without threads."""
    often = gc.get_threshold()
    gc.set_threshold(1_000_000)  # this many objects are made here and stay alive
    with pytest.MonkeyPatch.context() as patch:
        for module in ("uuid", "time"):
            patch.setattr(log_writer, module, Outside)
        for user in (log, catalog):
            patch.setattr(user, "map_at_once", map)
        yield
    gc.set_threshold(*often)


def play(program: Program, state: WriterState, content: Content, stages: int = 99) -> Content:
    """Run an undisturbed writer, or its first stages; return what the store holds then."""
    Outside.state, Outside.clock = state, None
    store = MemoryStore(content)
    for stage in program.stages[:stages]:
        if state.log is not None:
            state.log.store = store
        stage(state, store)
    return store.content


@dataclass(frozen=True)
class Node:
    """A writer that waits for an answer, or has ended."""

    slot: int
    program: str
    root: bytes = b""  # its pickled state when the stage began
    answers: tuple[Answer, ...] = ()  # answers since then
    operation: Operation | None = None
    outcome: Outcome | None = None


class Writers:
    """All that writers can do; their code runs once for each series of answers."""

    def __init__(
        self,
        programs: Mapping[str, Program],
        make: type[LogWriter] = LogWriter,
        clocks: bool = False,
    ):
        """`clocks`: whether writers that ask for the time get any answer."""
        self.programs, self.make, self.clocks = programs, make, clocks
        self.nodes: list[Node] = []
        self._numbers: dict[Any, int] = {}
        self._next: dict[tuple[int, Answer], int] = {}

    def start(self, slot: int, program: str) -> int:
        return self._begin(WriterState(slot, program, self.make))

    def step(self, node: int, answer: Answer) -> int:
        """Return the number of the node that a writer reaches with an answer."""
        found = self._next.get((node, answer))
        if found is None:
            at = self.nodes[node]
            found = self._run(at.root, (*at.answers, answer))
            self._next[node, answer] = found
        return found

    def _begin(self, state: WriterState) -> int:
        """Return the number of a writer's node at the beginning of a stage."""
        key = canonical(state)
        if key not in self._numbers:
            self._numbers[key] = self._run(pickle.dumps(state), ())
        return self._numbers[key]

    def _run(self, root: bytes, answers: tuple[Answer, ...]) -> int:
        """Run the code of a stage until a request has no answer, or to its end."""
        state: WriterState = pickle.loads(root)
        store = ReplayedStore(answers)
        Outside.state, Outside.clock = state, store if self.clocks else None
        if state.log is not None:
            state.log.store = store
        try:
            outcome = self._run_stage(self.programs[state.program], state, store)
        except Unanswered:
            return self._add(Node(state.slot, state.program, root, answers, store.unanswered))
        assert next(store.answers, None) is None
        state.stage += 1
        if outcome is None and state.stage == len(self.programs[state.program].stages):
            outcome = Outcome("done", state.commits)
        if outcome is None:
            if state.log is not None:
                del state.log.store
            return self._begin(state)
        key = (state.slot, state.program, outcome)
        if key not in self._numbers:
            self._numbers[key] = self._add(Node(state.slot, state.program, outcome=outcome))
        return self._numbers[key]

    def _run_stage(
        self, program: Program, state: WriterState, store: MemoryStore
    ) -> Outcome | None:
        """Run a stage; return None if the next one follows."""
        expected: tuple[type[Exception], ...] = (CommitLost, CommitUnknown, Injected)
        try:
            return program.stages[state.stage](state, store)
        except Exception as error:
            if not isinstance(error, expected + program.allowed):
                reason = f"{type(error).__name__}: {error}"
                raise Violation(
                    f"{state.program} of writer {state.slot} ends in {reason}"
                ) from error
            if isinstance(error, program.cleans_up_after):
                with suppress(Injected):
                    program.clean_up(state, store)
            return Outcome("lost" if isinstance(error, CommitLost) else "ended", state.commits)

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1


def canonical(value: Any) -> Any:
    """Return a hashable value that is equal for equal values."""
    if isinstance(value, WriterState | LogWriter | catalog.Catalog | log.State | log.RunState):
        return tuple((name, canonical(one)) for name, one in sorted(vars(value).items()))
    if isinstance(value, dict):
        pairs = list(value.items())
        if not isinstance(pairs and pairs[0][1], log.RunState):  # runs keep their order
            pairs.sort()
        return tuple((key, canonical(one)) for key, one in pairs)
    if isinstance(value, list):
        return tuple(map(canonical, value))
    return frozenset(value) if isinstance(value, set) else value
