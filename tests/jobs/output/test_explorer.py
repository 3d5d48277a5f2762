"""All schedules of a few writers keep what was committed, and leaving out any rule loses it."""

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
from tests.jobs.output.explorer import Explorer, Moment, Scenario, Walked
from tests.jobs.output.programs import PROGRAMS, file_of_run, manifest_of, part, rows_of
from tests.jobs.output.rules import Old, rules
from tests.jobs.output.simulated import Content, Desk, Program, Writers, played, real_code, token

MAIN = ("label", "relabel", "compact", "delete")
# Runs that versions before the log left: those that count, and those whose labels are there.
OLD: Old = ("a3", "a4"), ("a1", "a2", "a4")


@pytest.fixture(autouse=True)
def _real_code() -> Iterator[None]:
    with real_code():
        yield


def two_runs() -> tuple[Content, ...]:
    """A store with two runs, and with parts of a writer that is dead."""
    found: list[Content] = [{}]
    for slot, stages in ((5, 99), (6, 99), (7, 3)):
        found.append(played(PROGRAMS["label"], Desk(slot, "label"), found[-1], stages))
    return tuple(found)


def merged_runs() -> tuple[Content, ...]:
    """The same, where the two runs were merged."""
    before = two_runs()
    return *before, played(PROGRAMS["compact"], Desk(8, "compact"), before[-1])


def old_runs() -> tuple[Content, ...]:
    """A store of a version before the log: two runs merged, one more, and parts of a killed one."""
    found: dict[str, bytes] = {}
    rows = {"a3": rows_of("a1") + rows_of("a2")}
    for run_id in ("a1", "a2", "a3", "a4", "a5"):
        files = []
        for table in paths.TABLES:
            name, data = f"{table}/run={run_id}/part-00000.parquet", part(rows_of(run_id), "old")
            if run_id in rows:
                data = part(rows[run_id], "old")
            if run_id not in ("a1", "a2"):
                found[name] = data
            files.append(file_of_run(name, data))
        manifest = manifest_of(run_id, "", files, ["a1", "a2"] * (run_id in rows), run_id in rows)
        document = {key: one for key, one in manifest.items() if key not in ("format", "plan")}
        if run_id != "a5":
            found[f"{paths.RUNS}/{run_id}/manifest.json"] = json.dumps(document).encode()
    return (found,)  # what lists it is trusted, as it was before


def explored(
    explorer: Explorer,
    history: tuple[Content, ...],
    all_programs: Iterable[tuple[str, ...]],
    faults: int,
    tidy: bool = False,
) -> Walked:
    """Walk through all schedules; where one breaks a rule, fail with the shortest such."""
    walked = Walked()
    for programs in all_programs:
        scenario = Scenario(history, programs, faults, tidy)
        try:
            walked += explorer.explore(scenario)
        except AssertionError as error:
            pytest.fail("\n".join([str(error), "", *explorer.shortest(scenario)]))
    return walked


def report(capsys: pytest.CaptureFixture[str], what: str, walked: Walked) -> None:
    with capsys.disabled():
        print(f"\n{what}: {walked}")


def test_no_schedule_with_a_fault_loses_anything(capsys: pytest.CaptureFixture[str]) -> None:
    """All pairs, and two triples that write, replace, merge and delete."""
    explorer = Explorer(Writers(PROGRAMS), rules())
    pairs = explored(explorer, two_runs(), combinations_with_replacement(MAIN, 2), faults=1)
    report(capsys, "pairs with a fault", pairs)
    triples = [("label", "relabel", "compact"), ("label", "compact", "delete")]
    found = explored(explorer, two_runs(), triples, faults=1, tidy=True)
    report(capsys, "triples with a fault", found)


def test_readers_see_what_counted_at_one_moment() -> None:
    explorer = Explorer(Writers(PROGRAMS), rules())
    pairs = [("list", program) for program in MAIN]
    explored(explorer, two_runs(), pairs, faults=1)
    explored(explorer, merged_runs(), [("list", "delete")], faults=1)
    explored(explorer, ({},), pairs, faults=1)


def test_an_empty_output_and_one_of_an_old_version_are_taken_over_once() -> None:
    explorer = Explorer(Writers(PROGRAMS), rules())
    explored(explorer, ({},), [("label", "label"), ("label", "relabel")], faults=1)
    explorer = Explorer(Writers(PROGRAMS), rules(OLD))
    explored(explorer, old_runs(), [("list", "delete"), ("relabel", "compact")], faults=0)


def test_clocks_may_say_anything() -> None:
    """They only say how long files of runs stay that others took the place of."""
    explorer = Explorer(Writers(PROGRAMS, clocks=True), rules())
    pairs = [("relabel and keep", program) for program in (*MAIN, "list")]
    explored(explorer, two_runs(), pairs, faults=0)


@pytest.mark.slow
def test_no_triple_with_two_faults_loses_anything(capsys: pytest.CaptureFixture[str]) -> None:
    total = Walked()
    for programs in combinations_with_replacement(MAIN, 3):
        explorer = Explorer(Writers(PROGRAMS), rules())
        walked = explored(explorer, two_runs(), [programs], faults=2, tidy=True)
        report(capsys, ", ".join(programs), walked)
        total += walked
    report(capsys, "triples with two faults", total)


@pytest.mark.slow
def test_what_tidy_triples_leave_out_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs with two faults, and triples without one, in which nothing vanishes by itself."""
    more = ("label twice", "take up", "list")
    explorer = Explorer(Writers(PROGRAMS), rules())
    pairs = explored(explorer, two_runs(), combinations_with_replacement(MAIN, 2), faults=2)
    mixed = [(one, other) for one in more for other in (*MAIN, one)]
    pairs += explored(explorer, two_runs(), mixed, faults=1)
    report(capsys, "pairs", pairs)
    triples = [
        ("label", "relabel", "compact"),
        ("delete", "relabel", "list"),
        ("compact", "delete", "list"),
        ("take up", "take up", "compact"),
    ]
    report(capsys, "triples", explored(explorer, two_runs(), triples, faults=0))


class Patient(Explorer):
    """Keeps how schedules end, and may walk through all orders, also of what commutes."""

    hurries = True

    def __init__(self) -> None:
        super().__init__(Writers(PROGRAMS), rules())
        self.ends: set[tuple[str, ...]] = set()

    def _visit(self, state: Moment) -> list[tuple[str, Moment]]:
        found = super()._visit(state)
        if not found:
            content = self.contents[state.store]
            entries = sorted(name for name in content if paths.number_of_entry(name) is not None)
            outcomes = [str(self.writers.nodes[node].outcome) for node in state.writers]
            self.ends.add((*outcomes, *(content[name].decode() for name in entries)))
        return found

    def _may_go_first(self, state: Moment, slot: int) -> bool:
        return self.hurries and super()._may_go_first(state, slot)


@pytest.mark.slow
@pytest.mark.parametrize("programs", [("delete", "compact"), ("relabel", "list")])
def test_schedules_end_alike_where_what_commutes_comes_first(programs: tuple[str, str]) -> None:
    quick, patient = Patient(), Patient()
    patient.hurries = False
    for explorer in (quick, patient):
        explored(explorer, two_runs(), [programs], faults=1)
    assert quick.ends == patient.ends and len(quick.ends) > 10


@pytest.mark.slow
def test_other_stores_lose_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty ones, those of old versions and merged ones; ones with a checkpoint at every commit."""
    pairs = list(combinations_with_replacement((*MAIN, "list"), 2))
    walked = Walked()
    for history, old in (({},), None), (old_runs(), OLD), (merged_runs(), None):
        explorer = Explorer(Writers(PROGRAMS), rules() if old is None else rules(old))
        walked += explored(explorer, history, pairs, faults=1)
    monkeypatch.setattr(log_writer, "CHECKPOINT_EVERY", 1)
    explorer = Explorer(Writers(PROGRAMS), rules())
    walked += explored(explorer, two_runs(), pairs, faults=1)
    report(capsys, "other stores", walked)


# From here on: what the explorer finds where a rule is left out.


def found(
    programs: Sequence[str],
    faults: int,
    make: type[LogWriter] = LogWriter,
    history: Callable[[], tuple[Content, ...]] = two_runs,
    known: dict[str, Program] = PROGRAMS,
    fences: bool = True,
) -> str:
    """The rule that the shortest schedule breaks."""
    explorer = Explorer(Writers(known, make), rules(fences=fences))
    schedule = explorer.shortest(Scenario(history(), tuple(programs), faults))
    return schedule[-1] if schedule else "nothing"


class Next(LogWriter):
    """Tries the number after where one is taken."""

    def _append(self, entry: Entry) -> None:
        while not self._create(entry):
            entry = replace(entry, number=entry.number + 1)


class NextForFences(LogWriter):
    """Begins behind what it has not read."""

    def fence(self) -> None:
        while not self._create(self.first):
            self.first = replace(self.first, number=self.first.number + 1)
        self.catalog.state.number = self.first.number
        self.fenced = True


class Fenceless(LogWriter):
    """Commits behind what it has read."""

    def fence(self) -> None:
        self.catalog.state.number -= 1
        self.fenced = True
        self.store.remove(self.abandoned_files())


class Overwriting(LogWriter):
    """Puts an entry where there may be one."""

    def _create(self, entry: Entry) -> bool:
        self.store.write(paths.entry(entry.number), entry.to_bytes())
        return True


class Hasty(LogWriter):
    """Takes a creation without an answer for one that never was."""

    def _settle(self, entry: Entry, error: Exception) -> bool:
        return False


class Sealless(LogWriter):
    """Takes an entry that is absent for one that never will be."""

    def _settle(self, entry: Entry, error: Exception) -> bool:
        return self._owner(paths.entry(entry.number)) == entry.token


class Sweeping(LogWriter):
    """Deletes what does not count, whoever made it."""

    def abandoned_files(self) -> list[str]:
        runs = self.catalog.committed_runs()
        names = {file["path"] for run in runs for file in run["files"]}
        names |= {self.catalog.state.runs[run["run_id"]].added.manifest for run in runs}
        listed = [name for folder in paths.TABLES for name in self.store.names(folder)]
        return [name for name in listed if name not in names]


class Deleting(LogWriter):
    """Deletes what its commit will remove."""

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


def cleaning_up_after(*errors: type[Exception]) -> dict[str, Program]:
    return {name: replace(one, cleans_up_after=errors) for name, one in PROGRAMS.items()}


def test_nothing_is_found_where_no_rule_is_left_out() -> None:
    assert found(("label",), 2) == found(("label", "relabel"), 1) == "nothing"


def test_a_commit_that_tries_the_number_after() -> None:
    assert "is behind another writer's" in found(("label", "label"), 0, Next)


def test_a_fence_behind_what_was_not_read() -> None:
    assert "removes ('w5', 'w6') of ('w0', 'w5', 'w6')" in found(
        ("label", "relabel"), 0, NextForFences
    )
    assert "removes w5, which is gone" in found(("compact", "compact"), 0, NextForFences)


def test_a_writer_without_a_fence() -> None:
    assert "the next writer left them" in found(("label",), 0, Fenceless, fences=False)


def test_an_entry_that_overwrites_another() -> None:
    assert "is not as it was" in found(("label", "label"), 0, Overwriting)


def test_a_lost_answer_that_is_taken_for_no_commit() -> None:
    assert "counts, and is gone" in found(("label",), 1, Hasty)


def test_an_absent_entry_that_is_not_sealed() -> None:
    assert "counts, and is gone" in found(("label",), 1, Sealless)


def test_names_without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """All writers use the same."""
    template, manifest, same = paths.part_template, paths.manifest, token(5, "label")
    monkeypatch.setattr(paths, "part_template", lambda run_id, _: template(run_id, same))
    monkeypatch.setattr(paths, "manifest", lambda run_id, _: manifest(run_id, same))
    assert "counts, and is" in found(("take up", "take up"), 0)


def test_an_end_of_the_log_that_is_taken_from_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_listed(store: Store) -> State:
        state = State()
        for name in store.names(paths.LOG):
            state.apply(entry_of_bytes(name, store.read(name)))
        return state

    monkeypatch.setattr(catalog, "read_state", read_listed)
    assert "which was never so since it began" in found(("list",), 1)


def test_readers_that_do_not_look_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_has_entry", lambda store, number: False)
    assert "ends in DamagedOutput" in found(("list", "delete"), 0)
    assert "ends in DamagedOutput" in found(("label", "delete"), 0)


def test_a_sweep_that_looks_at_no_token() -> None:
    assert "counts, and is gone" in found(("label", "label"), 0, Sweeping)


def test_files_that_are_deleted_before_the_commit() -> None:
    assert "counts, and is gone" in found(("delete",), 0, Deleting)


@pytest.mark.parametrize(
    ("errors", "faults"), [((CommitLost, CommitUnknown), 2), ((Exception,), 1)]
)
def test_own_files_that_are_deleted_where_the_commit_is_unknown(
    errors: tuple[type[Exception], ...], faults: int
) -> None:
    known = cleaning_up_after(*errors)
    assert "counts, and is gone" in found(("relabel",), faults, known=known)


def test_only_the_keeping_of_replaced_files_asks_for_the_time() -> None:
    """So no jump of a clock can change what counts."""
    for module in (log, catalog):
        assert not {"time", "datetime"} & vars(module).keys()
    asking = inspect.getsource(log_writer).count("time.time()")
    assert asking == 2, "clocks are asked for more by now: let the explorer's jump there too"
