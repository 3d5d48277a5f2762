"""The short form of `make chaos`: a few faults of most kinds, in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.harness import Fault
from tests.chaos.journal import Journal
from tests.chaos.kinds import KINDS
from tests.chaos.plan import plan, spares, writers

ROOT = Path(__file__).parents[2]
STEPS = dict.fromkeys(writers(), 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One journal and one world for all tests of this file."""
    return tmp_path_factory.mktemp("chaos")


def inject(folder: Path, *words: str) -> list[dict[str, object]]:
    """Run a part of `make chaos`, which must end well; the results of this part."""
    before = len(Journal(folder / "journal.jsonl").results)
    command = [sys.executable, "-m", "tests.chaos", "--folder", str(folder), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    return list(Journal(folder / "journal.jsonl").results.values())[before:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--kinds", "killed at a step", "--commands", "import", "--limit", "2"),
        ("--kinds", "taken over", "--commands", "import", "--limit", "1"),
        ("--kinds", "damaged document", "--commands", "import", "--limit", "1"),
    ],
    ids=lambda words: words[1],
)
def test_nothing_is_lost_and_nothing_twice(folder: Path, words: tuple[str, ...]) -> None:
    results = inject(folder, "--alone", *words)
    assert results and not any("not_possible" in result for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--alone", "--ray"])
def test_a_fault_of_each_kind(folder: Path, how: str) -> None:
    kinds = ("killed at a step", "store: reset", "paused") if how == "--ray" else ("",)
    for kind in kinds:
        assert inject(folder, how, "--limit", "1", "--kinds", kind)


def test_plan_is_the_same_each_time_and_has_all_kinds() -> None:
    faults = plan(STEPS)
    assert faults == plan(STEPS) and len(set(faults)) == len(faults)
    assert {fault.kind for fault in faults} == KINDS.keys()
    assert len(faults) >= 250 and len(KINDS) >= 30
    alone = [fault for fault in faults if not fault.ray]
    assert len(alone) > len(faults) / 2
    assert {fault.command for fault in alone} >= set(writers())
    assert all(fault.ray for fault in spares()) and not set(spares()) & set(faults)


def test_journal_passes_over_what_went_well(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    good, bad, late = (Fault(kind) for kind in ("SIGTERM", "Ctrl-C", "out of memory"))
    journal.add(good, {"lost": 0, "twice": 0, "differing": 0, "again": 1, "recovery": [2.0]})
    journal.add(bad, {"lost": 3, "twice": 0, "differing": 0, "again": 0, "recovery": []})
    journal.add(late, {"not_possible": "it had ended"})
    read = Journal(journal.path)
    assert [read.is_done(fault) for fault in (good, bad, late)] == [True, False, True]
    read.add(Fault("SIGTERM", ray=True), {"not_possible": "it had ended"})
    assert (len(read.injected("SIGTERM")), read.count_with_ray("SIGTERM")) == (1, 0)
    assert read.table().splitlines()[2:] == [
        "| Ctrl-C | 1, 0 | 3, 0, 0 | 0 | - |",
        "| SIGTERM | 1, 0 | 0, 0, 0 | 1 | 2, 2 |",
    ]
    read.add(bad, {"lost": 0, "twice": 0, "differing": 0, "again": 0, "recovery": [1.0]})
    assert not Journal(journal.path).bad()
