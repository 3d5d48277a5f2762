"""Two hosts write one OUTPUT on a real S3 server; one is cut off at the worst moment."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.views import connect
from tests.chaos.faulty_store import FaultyStore
from tests.jobs.output.test_old_versions import write_detections
from tests.support.labelling import put_images

LEASE = "3"  # seconds
BOXES = "SELECT image_id, count(*) FROM latest GROUP BY ALL ORDER BY ALL"


@pytest.fixture
def store(s3: None) -> Iterator[FaultyStore]:
    """A proxy between the first host and the store; the second host has none."""
    proxy = FaultyStore(os.environ["AWS_ENDPOINT_URL"])
    with proxy.running():
        yield proxy
        proxy.release.set()


def start_command(store: FaultyStore, *arguments: str) -> subprocess.Popen[str]:
    environment = {"AWS_ENDPOINT_URL": store.url, "DETR_BATCH_LEASE_SECONDS": LEASE}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_elsewhere(*arguments: str) -> None:
    """Run a command on the second host; it waits until the lease has ended."""
    environment = os.environ | {"DETR_BATCH_LEASE_SECONDS": LEASE}
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def count_boxes(output: str) -> list[tuple[Any, ...]]:
    with connect(output) as connection:
        return connection.sql(BOXES).fetchall()


@pytest.fixture
def output(bucket: str, tmp_path: Path) -> str:
    """An OUTPUT of two runs over one INPUT, with entries 1 to 4 of the log."""
    for boxes in (2, 3):
        found = write_detections(tmp_path, "a", boxes)
        assert main(["import", found[0], f"{bucket}/out", *found[1:]]) == 0
    assert read_catalog(f"{bucket}/out").state.number == 4
    return f"{bucket}/out"


@pytest.mark.slow
@pytest.mark.parametrize("heir", ["import", pytest.param("compact", marks=pytest.mark.slow)])
def test_a_compact_that_was_cut_off_at_its_commit_loses(
    heir: str, output: str, store: FaultyStore, tmp_path: Path
) -> None:
    """It stood still for longer than its lease, and then its request arrives."""
    store.hold_at = paths.entry(6)
    zombie = start_command(store, "compact", output)
    assert store.held.wait(60)
    time.sleep(1.5 * float(LEASE))
    if heir == "import":
        found = write_detections(tmp_path, "b", 1)
        run_elsewhere("import", found[0], output, *found[1:])
    else:
        run_elsewhere("compact", output)
    store.release.set()
    _, printed = zombie.communicate(timeout=120)
    assert zombie.returncode == 1, printed
    assert "another run took OUTPUT over" in printed and "Traceback" not in printed
    expected = [("a.jpg", 3)] + [("b.jpg", 1)] * (heir == "import")
    assert count_boxes(output) == expected
    assert main(["runs", output, "--verify"]) == 0
    assert main(["compact", output]) == 0
    assert count_boxes(output) == expected
    assert main(["runs", output, "--verify"]) == 0


def test_a_commit_whose_answer_was_lost_is_known_to_have_happened(
    output: str, store: FaultyStore
) -> None:
    store.lose_at = paths.entry(6)
    done = start_command(store, "compact", output)
    _, printed = done.communicate(timeout=120)
    assert done.returncode == 0, printed
    assert store.injected["lost_answer"] == 1
    assert [run["compacts"] for run in read_catalog(output).committed_runs()] == [True]
    assert count_boxes(output) == [("a.jpg", 3)]


@pytest.mark.slow
@pytest.mark.parametrize("command", [(), ("--relabel",)], ids=["label", "relabel"])
def test_a_label_that_was_cut_off_at_its_commit_loses(
    command: tuple[str, ...], bucket: str, store: FaultyStore, weights: str
) -> None:
    """Another host drops its run, or resumes it, and labels everything again."""
    photos, output = f"{bucket}/photos", f"{bucket}/labels"
    put_images(photos)
    arguments = ["label", photos, output, "--model", "shapes-tiny", "--weights", weights]
    arguments += ["--score-threshold", "0", "--no-page", "--max-failed-fraction", "1"]
    run_elsewhere(*arguments)
    before = count_boxes(output)
    put_images(f"{photos}/more")
    store.hold_at = paths.entry(4)
    zombie = start_command(store, *arguments, *command)
    assert store.held.wait(120)
    time.sleep(1.5 * float(LEASE))
    run_elsewhere(*arguments, "--relabel")
    store.release.set()
    _, printed = zombie.communicate(timeout=120)
    assert zombie.returncode == 1, printed
    assert "another run took OUTPUT over" in printed and "Traceback" not in printed
    catalog = read_catalog(output)
    assert catalog.state.number == 5
    assert [sum(run["images"].values()) for run in catalog.committed_runs()] == [8]
    assert len(count_boxes(output)) == 2 * len(before) > 0
    assert main(["runs", output, "--verify"]) == 0
    run_elsewhere(*arguments)
    assert main(["compact", output]) == 0
    assert len(count_boxes(output)) == 2 * len(before)


@pytest.mark.parametrize("option", [[], ["--single-writer"]])
def test_a_disk_without_hard_links_is_refused(
    option: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The answer of the system is simulated, because this machine can mount no such disk."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    found, output = write_detections(tmp_path, "a", 2), tmp_path / "out"
    monkeypatch.setattr(os, "link", refuse)
    assert main(["import", found[0], str(output), *found[1:], *option]) == 2
    printed = capsys.readouterr().err
    assert (
        "without hard links" in printed
        and "use another disk" in printed
        and printed.count("\n") == 1
    )
    assert not list(output.rglob("*.parquet"))
