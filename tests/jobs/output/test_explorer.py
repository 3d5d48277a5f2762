"""No schedule of a few writers loses what was committed, and each rule is needed for that."""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement

import pytest

from jobs.output import catalog, log, log_writer, paths
from jobs.output.errors import CommitLost, CommitUnknown
from jobs.output.log import Entry, Reason, State, entry_of_bytes
from jobs.output.log_writer import LogWriter
from jobs.output.manifest import Manifest
from jobs.output.store import Store
from tests.jobs.output.explorer import Coverage, Explorer, Moment, Scenario
from tests.jobs.output.pairs import MAIN, PAIRS
from tests.jobs.output.programs import PROGRAMS, file_of_run, manifest_of, part, rows_of
from tests.jobs.output.rules import Old, make_rules
from tests.jobs.output.simulated import (
    Content,
    Program,
    Writers,
    WriterState,
    play,
    real_code,
    token,
)

# Runs of versions before the log: those that count, and those whose labels still exist.
OLD: Old = ("a3", "a4"), ("a1", "a2", "a4")


@pytest.fixture(autouse=True)
def _real_code() -> Iterator[None]:
    with real_code():
        yield


def two_runs() -> tuple[Content, ...]:
    """Make a store with two runs, and with parts of a writer that died."""
    history: list[Content] = [{}]
    for slot, stages in ((5, 99), (6, 99), (7, 3)):
        history.append(play(PROGRAMS["label"], WriterState(slot, "label"), history[-1], stages))
    return tuple(history)


def merged_runs() -> tuple[Content, ...]:
    """Make the same store, and merge its two runs."""
    before = two_runs()
    return *before, play(PROGRAMS["compact"], WriterState(8, "compact"), before[-1])


def old_runs() -> tuple[Content, ...]:
    """Make a store of a version before the log: merged runs, another, and parts of a killed one."""
    content: dict[str, bytes] = {}
    rows = {"a3": rows_of("a1") + rows_of("a2")}
    for run_id in ("a1", "a2", "a3", "a4", "a5"):
        files = []
        for table in paths.TABLES:
            name, data = f"{table}/run={run_id}/part-00000.parquet", part(rows_of(run_id), "old")
            if run_id in rows:
                data = part(rows[run_id], "old")
            if run_id not in ("a1", "a2"):
                content[name] = data
            files.append(file_of_run(name, data))
        manifest = manifest_of(run_id, "", files, ["a1", "a2"] * (run_id in rows), run_id in rows)
        document = {key: one for key, one in manifest.items() if key not in ("format", "plan")}
        if run_id != "a5":
            content[f"{paths.RUNS}/{run_id}/manifest.json"] = json.dumps(document).encode()
    return (content,)  # only one state, since versions before the log trusted listings


def explore_all(
    explorer: Explorer,
    history: tuple[Content, ...],
    all_programs: Iterable[tuple[str, ...]],
    faults: int,
    tidy: bool = False,
) -> Coverage:
    """Walk through all schedules; fail with the shortest one that breaks a rule, if any does."""
    coverage = Coverage()
    for programs in all_programs:
        scenario = Scenario(history, programs, faults, tidy)
        try:
            coverage += explorer.explore(scenario)
        except AssertionError as error:
            pytest.fail("\n".join([str(error), "", *explorer.find_shortest_violation(scenario)]))
    return coverage


def print_coverage(capsys: pytest.CaptureFixture[str], what: str, coverage: Coverage) -> None:
    with capsys.disabled():
        print(f"\n{what}: {coverage}")


@pytest.mark.slow
def test_no_pair_with_a_fault_loses_anything(capsys: pytest.CaptureFixture[str]) -> None:
    """These are pairs of writers that write, replace, merge and delete."""
    explorer = Explorer(Writers(PROGRAMS), make_rules())
    print_coverage(capsys, "pairs with a fault", explore_all(explorer, two_runs(), PAIRS, 1))


@pytest.mark.slow
def test_no_triple_with_a_fault_loses_anything(capsys: pytest.CaptureFixture[str]) -> None:
    explorer = Explorer(Writers(PROGRAMS), make_rules())
    triples = [("label", "relabel", "compact"), ("label", "compact", "delete")]
    coverage = explore_all(explorer, two_runs(), triples, faults=1, tidy=True)
    print_coverage(capsys, "triples with a fault", coverage)


@pytest.mark.slow
def test_readers_see_what_counted_at_one_moment() -> None:
    explorer = Explorer(Writers(PROGRAMS), make_rules())
    pairs = [("list", program) for program in MAIN]
    explore_all(explorer, two_runs(), pairs, faults=1)
    explore_all(explorer, merged_runs(), [("list", "delete")], faults=1)
    explore_all(explorer, ({},), pairs, faults=1)


def test_an_empty_output_and_one_of_an_old_version_are_taken_over_once() -> None:
    explorer = Explorer(Writers(PROGRAMS), make_rules())
    explore_all(explorer, ({},), [("label", "label"), ("label", "relabel")], faults=1)
    explorer = Explorer(Writers(PROGRAMS), make_rules(OLD))
    explore_all(explorer, old_runs(), [("list", "delete"), ("relabel", "compact")], faults=0)


@pytest.mark.slow
def test_clocks_may_show_any_time() -> None:
    explorer = Explorer(Writers(PROGRAMS, clocks=True), make_rules())
    pairs = [("relabel and keep", program) for program in (*MAIN, "list")]
    explore_all(explorer, two_runs(), pairs, faults=0)


@pytest.mark.slow
def test_no_triple_with_two_faults_loses_anything(capsys: pytest.CaptureFixture[str]) -> None:
    total = Coverage()
    for programs in combinations_with_replacement(MAIN, 3):
        explorer = Explorer(Writers(PROGRAMS), make_rules())
        coverage = explore_all(explorer, two_runs(), [programs], faults=2, tidy=True)
        print_coverage(capsys, ", ".join(programs), coverage)
        total += coverage
    print_coverage(capsys, "triples with two faults", total)


@pytest.mark.slow
def test_what_tidy_triples_leave_out_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """These are pairs with two faults and triples without one, where no file vanishes by itself."""
    more = ("label twice", "take up", "list")
    explorer = Explorer(Writers(PROGRAMS), make_rules())
    pairs = explore_all(explorer, two_runs(), combinations_with_replacement(MAIN, 2), faults=2)
    mixed = [(one, other) for one in more for other in (*MAIN, one)]
    pairs += explore_all(explorer, two_runs(), mixed, faults=1)
    print_coverage(capsys, "pairs", pairs)
    triples = [
        ("label", "relabel", "compact"),
        ("delete", "relabel", "list"),
        ("compact", "delete", "list"),
        ("take up", "take up", "compact"),
    ]
    print_coverage(capsys, "triples", explore_all(explorer, two_runs(), triples, faults=0))


class RecordingExplorer(Explorer):
    """Records how schedules end; can also walk through the orders of operations that commute."""

    skips_equal_orders = True

    def __init__(self) -> None:
        super().__init__(Writers(PROGRAMS), make_rules())
        self.ends: set[tuple[str, ...]] = set()

    def _judge_and_expand(self, state: Moment) -> list[tuple[str, Moment]]:
        moves = super()._judge_and_expand(state)
        if not moves:
            content = self.contents[state.store]
            entries = sorted(name for name in content if paths.number_of_entry(name) is not None)
            outcomes = [str(self.writers.nodes[node].outcome) for node in state.writers]
            self.ends.add((*outcomes, *(content[name].decode() for name in entries)))
        return moves

    def _may_go_first(self, state: Moment, slot: int) -> bool:
        return self.skips_equal_orders and super()._may_go_first(state, slot)


@pytest.mark.slow
@pytest.mark.parametrize("programs", [("delete", "compact"), ("relabel", "list")])
def test_schedules_end_alike_if_commuting_operations_come_first(programs: tuple[str, str]) -> None:
    quick, patient = RecordingExplorer(), RecordingExplorer()
    patient.skips_equal_orders = False
    for explorer in (quick, patient):
        explore_all(explorer, two_runs(), [programs], faults=1)
    assert quick.ends == patient.ends and len(quick.ends) > 10


@pytest.mark.slow
def test_other_stores_lose_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are empty, old or merged, or have a checkpoint at every commit."""
    pairs = list(combinations_with_replacement((*MAIN, "list"), 2))
    coverage = Coverage()
    for history, old in (({},), None), (old_runs(), OLD), (merged_runs(), None):
        explorer = Explorer(Writers(PROGRAMS), make_rules() if old is None else make_rules(old))
        coverage += explore_all(explorer, history, pairs, faults=1)
    monkeypatch.setattr(log_writer, "CHECKPOINT_EVERY", 1)
    explorer = Explorer(Writers(PROGRAMS), make_rules())
    coverage += explore_all(explorer, two_runs(), pairs, faults=1)
    print_coverage(capsys, "other stores", coverage)


# Each test below leaves out one rule, and checks that the explorer finds the loss.


def find_broken_rule(
    programs: Sequence[str],
    faults: int,
    make: type[LogWriter] = LogWriter,
    history: Callable[[], tuple[Content, ...]] = two_runs,
    definitions: dict[str, Program] = PROGRAMS,
    fences: bool = True,
) -> str:
    """Return the rule that the shortest schedule breaks, or "nothing"."""
    explorer = Explorer(Writers(definitions, make), make_rules(fences=fences))
    schedule = explorer.find_shortest_violation(Scenario(history(), tuple(programs), faults))
    return schedule[-1] if schedule else "nothing"


class NextNumberWriter(LogWriter):
    """Tries the next number if a number is taken."""

    def _append(self, entry: Entry) -> None:
        while not self._create(entry):
            entry = replace(entry, number=entry.number + 1)


class NextNumberFenceWriter(LogWriter):
    """Fences behind entries that it has not read."""

    def fence(self) -> None:
        while not self._create(self.first):
            self.first = replace(self.first, number=self.first.number + 1)
        self.catalog.state.number = self.first.number
        self.fenced = True


class FencelessWriter(LogWriter):
    """Commits without a fence, behind the last entry that it has read."""

    def fence(self) -> None:
        self.catalog.state.number -= 1
        self.fenced = True
        self.store.remove(self.abandoned_files())


class OverwritingWriter(LogWriter):
    """Writes an entry even if there is one."""

    def _create(self, entry: Entry) -> bool:
        self.store.write(paths.entry(entry.number), entry.to_bytes())
        return True


class HastyWriter(LogWriter):
    """Assumes that a creation without an answer did not happen."""

    def _settle(self, entry: Entry, error: Exception) -> bool:
        return False


class SeallessWriter(LogWriter):
    """Assumes that an entry that is absent will never appear."""

    def _settle(self, entry: Entry, error: Exception) -> bool:
        return self._owner(paths.entry(entry.number)) == entry.token


class SweepingWriter(LogWriter):
    """Deletes files that do not count, also those of other writers."""

    def abandoned_files(self) -> list[str]:
        runs = self.catalog.committed_runs()
        names = {file["path"] for run in runs for file in run["files"]}
        names |= {self.catalog.state.runs[run["run_id"]].added.manifest for run in runs}
        listed = [name for folder in paths.TABLES for name in self.store.names(folder)]
        return [name for name in listed if name not in names]


class DeletingWriter(LogWriter):
    """Deletes files before the commit that removes them."""

    def commit(
        self,
        run: Manifest | None,
        removes: Sequence[str] = (),
        reason: Reason = "replaced",
        kept_until: float = 0.0,
    ) -> None:
        gone = [self.catalog.manifests[name] for name in removes]
        self.store.remove(file["path"] for one in gone for file in one["files"])
        super().commit(run, removes, reason, kept_until)


def programs_that_clean_up_after(*errors: type[Exception]) -> dict[str, Program]:
    return {name: replace(one, cleans_up_after=errors) for name, one in PROGRAMS.items()}


def test_nothing_is_found_if_no_rule_is_left_out() -> None:
    assert find_broken_rule(("label",), 2) == find_broken_rule(("label", "relabel"), 1) == "nothing"


def test_a_commit_that_tries_the_next_number() -> None:
    assert "follows one of another writer" in find_broken_rule(
        ("label", "label"), 0, NextNumberWriter
    )


def test_a_fence_behind_unread_entries() -> None:
    assert "removes ('w5', 'w6') of ('w0', 'w5', 'w6')" in find_broken_rule(
        ("label", "relabel"), 0, NextNumberFenceWriter
    )
    assert "removes w5, which is gone" in find_broken_rule(
        ("compact", "compact"), 0, NextNumberFenceWriter
    )


def test_a_writer_without_a_fence() -> None:
    assert "the next writer did not delete them" in find_broken_rule(
        ("label",), 0, FencelessWriter, fences=False
    )


def test_an_entry_that_overwrites_another() -> None:
    assert "was changed" in find_broken_rule(("label", "label"), 0, OverwritingWriter)


def test_a_lost_answer_that_is_taken_for_no_commit() -> None:
    assert "counts, but it is gone" in find_broken_rule(("label",), 1, HastyWriter)


def test_an_absent_entry_that_is_not_sealed() -> None:
    assert "counts, but it is gone" in find_broken_rule(("label",), 1, SeallessWriter)


def test_names_without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """All writers use the same names for their files."""
    template, manifest, same = paths.part_template, paths.manifest, token(5, "label")
    monkeypatch.setattr(paths, "part_template", lambda run_id, _: template(run_id, same))
    monkeypatch.setattr(paths, "manifest", lambda run_id, _: manifest(run_id, same))
    assert "counts, but" in find_broken_rule(("take up", "take up"), 0)


def test_an_end_of_the_log_that_is_taken_from_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_listed(store: Store) -> State:
        state = State()
        for name in store.names(paths.LOG):
            state.apply(entry_of_bytes(name, store.read(name)))
        return state

    monkeypatch.setattr(catalog, "read_state", read_listed)
    assert "which was never true since it began" in find_broken_rule(("list",), 1)


def test_readers_that_do_not_look_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_has_entry", lambda store, number: False)
    assert "ends in DamagedOutput" in find_broken_rule(("list", "delete"), 0)
    assert "ends in DamagedOutput" in find_broken_rule(("label", "delete"), 0)


def test_a_sweep_that_ignores_tokens() -> None:
    assert "counts, but it is gone" in find_broken_rule(("label", "label"), 0, SweepingWriter)


def test_files_that_are_deleted_before_the_commit() -> None:
    assert "counts, but it is gone" in find_broken_rule(("delete",), 0, DeletingWriter)


@pytest.mark.parametrize(
    ("errors", "faults"), [((CommitLost, CommitUnknown), 2), ((Exception,), 1)]
)
def test_own_files_that_are_deleted_where_the_commit_is_unknown(
    errors: tuple[type[Exception], ...], faults: int
) -> None:
    definitions = programs_that_clean_up_after(*errors)
    assert "counts, but it is gone" in find_broken_rule(
        ("relabel",), faults, definitions=definitions
    )


def test_only_keeping_replaced_files_needs_the_time() -> None:
    """Therefore no jump of a clock can change what counts."""
    for module in (log, catalog):
        assert not {"time", "datetime"} & vars(module).keys()
    asking = inspect.getsource(log_writer).count("time.time()")
    assert asking == 2, (
        "the code reads the clock elsewhere too: let the explorer's clock jump there"
    )
