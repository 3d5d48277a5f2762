"""Explores every schedule of a few writers over a simulated store, with the real commit code.

A schedule is a path through states. A state is what the store holds, where each writer stands,
which requests are still under way, and how many faults are left. Each state is visited once, and
is judged.

A writer may pause or die before any operation. This needs no fault, because the explorer goes
through all orders, and judges every state. Faults are

- a request fails, and takes effect at once, at any later moment, or never;
- a request is repeated: a creation takes effect, its answer is lost, and the client's repetition
  says that the name is taken; a write or removal takes effect, and once more at any later moment;
- a listing is stale: it shows what was there before.

Clocks jump without a fault: a writer that asks for the time gets any answer.

Two things make it fast. An operation that commutes with all that others may do before it is done
at once. In a `tidy` scenario, files that can never count again vanish by themselves, and no writer
is interrupted before it reads the names of the log or a manifest.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from jobs.output import paths
from tests.jobs.output.simulated import (
    Answer,
    Content,
    Node,
    Operation,
    Outcome,
    Special,
    Violation,
    Writers,
    answer_of_store,
    content_after,
    token,
)

SWEPT = (*paths.TABLES, paths.RUNS)


@dataclass(frozen=True)
class LogSummary:
    """The runs of a log before its first entry and after each entry, and its commits."""

    counting: tuple[tuple[str, ...], ...]
    labelling: tuple[tuple[str, ...], ...]
    commits: Counter[str]  # number of commits by the token of their writer


@dataclass(frozen=True)
class Rules:
    """The rules of a store and its writers. The three that judge raise Violation."""

    judge_store: Callable[[Content], LogSummary]
    judge_at_rest: Callable[[Content, LogSummary], None]  # a store whose writers have all stopped
    judge_claim: Callable[[Node, Outcome, LogSummary], None]  # what a writer reports when it ends
    find_remains: Callable[[Content], Iterable[str]]  # files that no run that counts needs


@dataclass(frozen=True)
class Scenario:
    """The programs that write to a store, and how many faults may happen."""

    history: tuple[Content, ...]  # states of the store; the writers begin with the last one
    programs: tuple[str, ...]
    faults: int
    tidy: bool = False


class Moment(NamedTuple):
    """A moment of a schedule."""

    store: int
    writers: tuple[int, ...]
    pending: tuple[int, ...]  # requests that may still take effect
    faults: int  # faults that may still happen


class Move(NamedTuple):
    """One possible result of a writer's next operation."""

    what: str
    store: int
    writer: int
    pending: tuple[int, ...] = ()


@dataclass
class Coverage:
    """How much was explored."""

    schedules: int = 0
    states: int = 0
    steps: int = 0

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage(
            self.schedules + other.schedules,
            self.states + other.states,
            self.steps + other.steps,
        )

    def __str__(self) -> str:
        return f"{self.schedules:.3g} schedules: {self.states:,} states, {self.steps:,} steps"


class Explorer:
    """Walks through all schedules of scenarios; the results of one are reused for the next."""

    def __init__(self, writers: Writers, rules: Rules):
        self.writers, self.rules = writers, rules
        self.contents: list[Content] = []
        self.operations: list[Operation] = []
        self._store_numbers: dict[frozenset[tuple[str, bytes]], int] = {}
        self._operation_numbers: dict[Operation, int] = {}
        self._summaries: dict[int, LogSummary] = {}
        # Results, by the values that they depend on.
        self._changed: dict[tuple[int, int], int] = {}
        self._moves: dict[tuple[int, int, bool], list[Move]] = {}
        self._settled: dict[tuple[int, int, tuple[int, ...]], tuple[int, tuple[int, ...]]] = {}
        self._commutes: dict[tuple[int, int], tuple[bool, bool]] = {}

    def explore(self, scenario: Scenario) -> Coverage:
        """Walk through all schedules; raise Violation if one of them breaks a rule."""
        counts: dict[Moment, int] = {}  # how many schedules go on from a state
        steps = 0
        path = [self._begin(scenario)]
        open_moves = [iter(self._judge_and_expand(path[0]))]
        sums = [0, 0]  # for each state of the path; the first is the total
        while path:
            for _, after in open_moves[-1]:
                steps += 1
                count = counts.get(after)
                if count is None:
                    path.append(after)
                    open_moves.append(iter(self._judge_and_expand(after)))
                    sums.append(0)
                    break
                sums[-1] += count
            else:
                open_moves.pop()
                count = counts[path.pop()] = sums.pop() or 1
                sums[-1] += count
        return Coverage(sums[0], len(counts), steps)

    def _judge_and_expand(self, state: Moment) -> list[tuple[str, Moment]]:
        """Judge a state; describe what may happen next, with the states that follow."""
        self._judge(state)
        return self._successors(state)

    def find_shortest_violation(self, scenario: Scenario) -> list[str]:
        """Return the shortest schedule that breaks a rule, then the rule; [] if none does."""
        first = self._begin(scenario)
        arrivals: dict[Moment, tuple[Moment, str] | None] = {first: None}
        queue = deque([first])
        while queue:
            state = queue.popleft()
            try:
                moves = self._judge_and_expand(state)
            except Violation as error:
                return [*_moves_to(arrivals, state), *getattr(error, "__notes__", []), str(error)]
            for move, after in moves:
                if after not in arrivals:
                    arrivals[after] = (state, move)
                    queue.append(after)
        return []

    def _begin(self, scenario: Scenario) -> Moment:
        self._scenario = scenario
        for results in (self._moves, self._settled, self._commutes):
            results.clear()
        store = self._number(scenario.history[-1])
        writers = tuple(map(self.writers.start, range(len(scenario.programs)), scenario.programs))
        return self._settle(store, writers, (), scenario.faults)

    def _successors(self, state: Moment) -> list[tuple[str, Moment]]:
        for slot in range(len(state.writers)):
            if self._may_go_first(state, slot):
                return self._steps(state, slot)
        found = [one for slot in range(len(state.writers)) for one in self._steps(state, slot)]
        for number in sorted(set(state.pending)):
            operation, store = self.operations[number], self._change(state.store, number)
            left = list(state.pending)
            left.remove(number)
            after = self._settle(store, state.writers, tuple(left), state.faults)
            found.append((f"late: {operation.kind} {operation.name}", after))
        return found

    def _steps(self, state: Moment, slot: int) -> list[tuple[str, Moment]]:
        """Return all that a writer may do next."""
        store, writers, pending, faults = state
        node = writers[slot]
        before, behind = writers[:slot], writers[slot + 1 :]
        return [
            (
                move.what,
                self._settle(
                    move.store,
                    (*before, move.writer, *behind),
                    tuple(sorted(pending + move.pending)) if move.pending else pending,
                    faults - fault,
                ),
            )
            for fault in range(1 + (faults > 0))
            for move in self._possible(store, node, fault > 0)
        ]

    def _settle(
        self, store: int, writers: tuple[int, ...], pending: tuple[int, ...], faults: int
    ) -> Moment:
        """Make a state without requests that can change nothing any more, and tidy it."""
        going = 0  # bits of the writers that have not ended
        if self._scenario.tidy:
            for slot, node in enumerate(writers):
                going |= (self.writers.nodes[node].outcome is None) << slot
        elif not pending:
            return Moment(store, writers, pending, faults)
        found = self._settled.get((store, going, pending))
        if found is None:
            found = self._find_settled(store, going, pending)
            self._settled[store, going, pending] = found
        return Moment(found[0], writers, found[1], faults)

    def _find_settled(
        self, store: int, going: int, pending: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...]]:
        content, operations = self.contents[store], self.operations
        # Entries of the log never change, so creating them again has no effect.
        creations = [n for n in pending if operations[n].kind == "create"]
        late = {n for n in creations if operations[n].name in content}
        if not self._scenario.tidy:
            return store, tuple(n for n in pending if n not in late)
        # Of the files that do not count, only those of the last entry's writer may still count.
        holder = holder_of(content)
        alive = {token(i, "")[:8] for i in range(len(self._scenario.programs)) if going >> i & 1}
        for number in set(creations) - late:
            if paths.number_of_entry(operations[number].name) is not None:
                alive.add(token_of(operations[number].data)[:8])
        if holder[:8] not in alive:
            holder = "nobody"
        useless = {name for name in self.rules.find_remains(content) if holder not in name}
        needed = {name: data for name, data in content.items() if name not in useless}
        left = set(creations) - late
        left |= {
            n for n in pending if operations[n].kind == "write" and holder in operations[n].name
        }
        return self._number(needed), tuple(n for n in pending if n in left)

    def _possible(self, store: int, node: int, faulty: bool) -> list[Move]:
        """Return the possible results of a writer's next operation, without or with a fault."""
        found = self._moves.get((store, node, faulty))
        if found is None:
            operation = self.writers.nodes[node].operation
            find = self._moves_with_fault if faulty else self._moves_without_fault
            found = [] if operation is None else list(find(store, node, operation))
            self._moves[store, node, faulty] = found
        return found

    def _moves_without_fault(self, store: int, node: int, operation: Operation) -> Iterator[Move]:
        if operation.kind == "clock":
            for later in (False, True):
                yield self._move(node, f" later: {later}", store, later)
            return
        after = self._change(store, self._operation(operation))
        yield self._move(node, "", after, answer_of_store(self.contents[store], operation))

    def _moves_with_fault(self, store: int, node: int, operation: Operation) -> Iterator[Move]:
        kind, number = operation.kind, self._operation(operation)
        after, answer = (
            self._change(store, number),
            answer_of_store(self.contents[store], operation),
        )
        if kind == "names":
            before = [answer_of_store(content, operation) for content in self._scenario.history]
            for stale in dict.fromkeys(before):
                if stale != answer:
                    yield self._move(node, f", stale: {stale!r}", store, stale)
        elif kind == "read":
            yield self._move(node, ", fails", store, Special.FAILED)
        elif kind in ("create", "write", "remove"):
            yield self._move(node, ", fails", store, Special.FAILED, (number,))
            if kind != "create":
                yield self._move(node, ", repeated", after, answer, (number,))
            elif answer is True:
                yield self._move(node, ", repeated", after, False)

    def _move(
        self, node: int, how: str, store: int, answer: Answer, pending: tuple[int, ...] = ()
    ) -> Move:
        at = self.writers.nodes[node]
        assert at.operation is not None
        what = f"{at.program} {at.slot}: {at.operation.kind} {at.operation.name}{how}"
        try:
            return Move(what, store, self.writers.step(node, answer), pending)
        except Violation as error:
            error.add_note(what)
            raise

    def _may_go_first(self, state: Moment, slot: int) -> bool:
        """Whether a writer's next operation commutes with all that others may do before it."""
        node = state.writers[slot]
        found = self._commutes.get((state.store, node))
        if found is None:
            operation = self.writers.nodes[node].operation
            found = (False, False) if operation is None else self._commuting(state.store, operation)
            self._commutes[state.store, node] = found
        always, unless_swept = found
        return always or (unless_swept and not any(map(self._sweeps, state.writers)))

    def _commuting(self, store: int, operation: Operation) -> tuple[bool, bool]:
        """Whether an operation commutes with all others, and with all but those of a sweep."""
        kind, name, _ = operation
        there = name in self.contents[store]
        if kind == "clock":
            return True, True
        if kind in ("read", "create") and name.startswith(f"{paths.LOG}/"):
            return there, there
        if not self._scenario.tidy:
            return False, False
        if kind in ("read", "names"):
            first = name == paths.LOG or name.startswith(f"{paths.RUNS}/")
            return first, first
        if kind not in ("write", "remove"):
            return False, False
        if holder_of(self.contents[store]) not in name:  # nothing will ever create this file
            return not there, not there
        return False, kind == "write"

    def _sweeps(self, node: int) -> bool:
        operation = self.writers.nodes[node].operation
        return operation is not None and operation.kind == "names" and operation.name in SWEPT

    def _judge(self, state: Moment) -> None:
        summary = self._summaries.get(state.store)
        if summary is None:
            content = self.contents[state.store]
            summary = self.rules.judge_store(content)
            self.rules.judge_at_rest(content, summary)  # all writers may be dead now
            self._summaries[state.store] = summary
        for node in state.writers:
            at = self.writers.nodes[node]
            if at.outcome is not None:
                self.rules.judge_claim(at, at.outcome, summary)

    def _change(self, store: int, operation: int) -> int:
        """Return the number of a store after an operation; Violation if it changes the log."""
        found = self._changed.get((store, operation))
        if found is None:
            content, request = self.contents[store], self.operations[operation]
            after = content_after(content, request)
            if request.name.startswith(paths.LOG) and content.get(request.name, b"") not in (
                b"",
                after.get(request.name),
            ):
                raise Violation(f"{request.name} was changed")
            found = self._number(after)
            self._changed[store, operation] = found
        return found

    def _number(self, content: Content) -> int:
        key = frozenset(content.items())
        found = self._store_numbers.setdefault(key, len(self.contents))
        if found == len(self.contents):
            self.contents.append(content)
        return found

    def _operation(self, operation: Operation) -> int:
        found = self._operation_numbers.setdefault(operation, len(self.operations))
        if found == len(self.operations):
            self.operations.append(operation)
        return found


@cache
def token_of(entry: bytes) -> str:
    found: str = json.loads(entry)["content"]["token"]
    return found


def holder_of(content: Content) -> str:
    """Return the token of the log's last entry."""
    names = [name for name in content if paths.number_of_entry(name) is not None]
    return token_of(content[max(names)]) if names else "nobody"


def _moves_to(arrivals: Mapping[Moment, tuple[Moment, str] | None], state: Moment) -> list[str]:
    """Return the moves that led to a state."""
    found: list[str] = []
    while (step := arrivals[state]) is not None:
        state, what = step
        found.append(what)
    return found[::-1]
