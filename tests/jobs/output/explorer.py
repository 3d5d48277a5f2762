"""Every schedule of a few writers over a simulated store, run with the real commit code.

A schedule is a walk through states: what the store holds, where each writer stands, which requests
are still under way, and how many faults are left. States that were met before are not walked
through again, and every state is judged.

A writer may stand still before any operation, for ever too: as all orders are walked through, and
every state is judged, pauses and deaths need no fault. Faults are

- a request fails, and takes effect at once, at any later moment, or never;
- a request is repeated: a creation takes effect, its answer is lost, and the client's repetition
  says that the name is taken; a write or removal takes effect, and once more at any later moment;
- a listing is stale: it shows what was there before.

Clocks jump without a fault: where writers ask what time it is, they get any answer.

Two things make it fast. An operation that commutes with all that others may do before it is done
at once. A `tidy` scenario leaves out how files that can never count again are removed: they vanish,
and nobody is interrupted before reading the names of the log or a manifest.
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
    answered,
    changed,
    token,
)

SWEPT = (*paths.TABLES, paths.RUNS)


@dataclass(frozen=True)
class Facts:
    """What a store's log says: runs before the first entry, and after each."""

    counting: tuple[tuple[str, ...], ...]
    labelling: tuple[tuple[str, ...], ...]
    commits: Counter[str]  # by the token of their writer


@dataclass(frozen=True)
class Rules:
    """What is asked of a store and of its writers. All but `remains` raise Violation."""

    judge: Callable[[Content], Facts]
    rest: Callable[[Content, Facts], None]  # where no writer goes on
    claim: Callable[[Node, Outcome, Facts], None]  # what a writer says of itself when it ends
    remains: Callable[[Content], Iterable[str]]  # files that no run that counts needs


@dataclass(frozen=True)
class Scenario:
    """Who writes what, and how much goes wrong."""

    history: tuple[Content, ...]  # of the store, the last one being where the writers begin
    programs: tuple[str, ...]
    faults: int
    tidy: bool = False


class Moment(NamedTuple):
    """A moment of a schedule."""

    store: int
    writers: tuple[int, ...]
    pending: tuple[int, ...]  # requests that may still take effect
    faults: int  # that are left


class Move(NamedTuple):
    """What may come of a writer's next operation."""

    what: str
    store: int
    writer: int
    pending: tuple[int, ...] = ()


@dataclass
class Walked:
    """How much was explored."""

    schedules: int = 0
    states: int = 0
    steps: int = 0

    def __add__(self, other: "Walked") -> "Walked":
        return Walked(
            self.schedules + other.schedules,
            self.states + other.states,
            self.steps + other.steps,
        )

    def __str__(self) -> str:
        return f"{self.schedules:.3g} schedules: {self.states:,} states, {self.steps:,} steps"


class Explorer:
    """Walks through all schedules of scenarios; what it learns of one serves the next."""

    def __init__(self, writers: Writers, rules: Rules):
        self.writers, self.rules = writers, rules
        self.contents: list[Content] = []
        self.operations: list[Operation] = []
        self._store_numbers: dict[frozenset[tuple[str, bytes]], int] = {}
        self._operation_numbers: dict[Operation, int] = {}
        self._facts: dict[int, Facts] = {}
        # What was found out, by what it depends on.
        self._changed: dict[tuple[int, int], int] = {}
        self._moves: dict[tuple[int, int, bool], list[Move]] = {}
        self._settled: dict[tuple[int, int, tuple[int, ...]], tuple[int, tuple[int, ...]]] = {}
        self._commutes: dict[tuple[int, int], tuple[bool, bool]] = {}

    def explore(self, scenario: Scenario) -> Walked:
        """Walk through all schedules. Violation where a rule is broken in one of them."""
        counts: dict[Moment, int] = {}  # of the schedules that go on from there
        steps = 0
        way = [self._begin(scenario)]
        open_moves = [iter(self._visit(way[0]))]
        sums = [0, 0]  # for each state of the way; the first is of all
        while way:
            for _, after in open_moves[-1]:
                steps += 1
                count = counts.get(after)
                if count is None:
                    way.append(after)
                    open_moves.append(iter(self._visit(after)))
                    sums.append(0)
                    break
                sums[-1] += count
            else:
                open_moves.pop()
                count = counts[way.pop()] = sums.pop() or 1
                sums[-1] += count
        return Walked(sums[0], len(counts), steps)

    def _visit(self, state: Moment) -> list[tuple[str, Moment]]:
        """Judge a state: all that may happen next, in words, and the state that follows."""
        self._judge(state)
        return self._successors(state)

    def shortest(self, scenario: Scenario) -> list[str]:
        """The shortest schedule that breaks a rule, and the rule; nothing where none does."""
        first = self._begin(scenario)
        ways: dict[Moment, tuple[Moment, str] | None] = {first: None}
        queue = deque([first])
        while queue:
            state = queue.popleft()
            try:
                moves = self._visit(state)
            except Violation as error:
                return [*_way(ways, state), *getattr(error, "__notes__", []), str(error)]
            for move, after in moves:
                if after not in ways:
                    ways[after] = (state, move)
                    queue.append(after)
        return []

    def _begin(self, scenario: Scenario) -> Moment:
        self._scenario = scenario
        for known in (self._moves, self._settled, self._commutes):
            known.clear()
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
        """All that a writer may do next."""
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
        """A state without requests that change nothing any more, and tidied."""
        going = 0  # of the writers, as bits
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
        # What the log has, stays.
        creations = [n for n in pending if operations[n].kind == "create"]
        late = {n for n in creations if operations[n].name in content}
        if not self._scenario.tidy:
            return store, tuple(n for n in pending if n not in late)
        # Of files that do not count, those may yet that the writer of the last entry made.
        holder = holder_of(content)
        alive = {token(i, "")[:8] for i in range(len(self._scenario.programs)) if going >> i & 1}
        for number in set(creations) - late:
            if paths.number_of_entry(operations[number].name) is not None:
                alive.add(token_of(operations[number].data)[:8])
        if holder[:8] not in alive:
            holder = "nobody"
        vain = {name for name in self.rules.remains(content) if holder not in name}
        kept = {name: data for name, data in content.items() if name not in vain}
        left = set(creations) - late
        left |= {
            n for n in pending if operations[n].kind == "write" and holder in operations[n].name
        }
        return self._number(kept), tuple(n for n in pending if n in left)

    def _possible(self, store: int, node: int, faulty: bool) -> list[Move]:
        """What may come of a writer's next operation, without or with a fault."""
        found = self._moves.get((store, node, faulty))
        if found is None:
            operation = self.writers.nodes[node].operation
            find = self._faulty if faulty else self._plain
            found = [] if operation is None else list(find(store, node, operation))
            self._moves[store, node, faulty] = found
        return found

    def _plain(self, store: int, node: int, operation: Operation) -> Iterator[Move]:
        if operation.kind == "clock":
            for later in (False, True):
                yield self._move(node, f" later: {later}", store, later)
            return
        after = self._change(store, self._operation(operation))
        yield self._move(node, "", after, answered(self.contents[store], operation))

    def _faulty(self, store: int, node: int, operation: Operation) -> Iterator[Move]:
        kind, number = operation.kind, self._operation(operation)
        after, answer = self._change(store, number), answered(self.contents[store], operation)
        if kind == "names":
            before = [answered(content, operation) for content in self._scenario.history]
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
        """Whether an operation commutes with all others, and whether with all but a sweep's."""
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
        if holder_of(self.contents[store]) not in name:  # nothing will ever be there again
            return not there, not there
        return False, kind == "write"

    def _sweeps(self, node: int) -> bool:
        operation = self.writers.nodes[node].operation
        return operation is not None and operation.kind == "names" and operation.name in SWEPT

    def _judge(self, state: Moment) -> None:
        facts = self._facts.get(state.store)
        if facts is None:
            content = self.contents[state.store]
            facts = self.rules.judge(content)
            self.rules.rest(content, facts)  # as all writers may be dead
            self._facts[state.store] = facts
        for node in state.writers:
            at = self.writers.nodes[node]
            if at.outcome is not None:
                self.rules.claim(at, at.outcome, facts)

    def _change(self, store: int, operation: int) -> int:
        """The number of a store after an operation. Violation where it changes the log."""
        found = self._changed.get((store, operation))
        if found is None:
            content, asked = self.contents[store], self.operations[operation]
            after = changed(content, asked)
            if asked.name.startswith(paths.LOG) and content.get(asked.name, b"") not in (
                b"",
                after.get(asked.name),
            ):
                raise Violation(f"{asked.name} is not as it was")
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
    """The token of the log's last entry."""
    names = [name for name in content if paths.number_of_entry(name) is not None]
    return token_of(content[max(names)]) if names else "nobody"


def _way(ways: Mapping[Moment, tuple[Moment, str] | None], state: Moment) -> list[str]:
    """What led to a state."""
    found: list[str] = []
    while (step := ways[state]) is not None:
        state, what = step
        found.append(what)
    return found[::-1]
