"""The faults of a nightly run, each as a function of the lab and of how often to inject it.

After each the tables must equal, row for row, those of an undisturbed run.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import psutil

from jobs.output import paths
from jobs.output.catalog import committed_runs
from jobs.report.report import report_of
from tests.chaos.harness import (
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    Lab,
    Outcome,
    Tables,
    compare,
    full_disk,
    of_one_colour,
    picture,
    small_ray,
    tables,
)
from tests.support.s3_server import BUCKET

Scenario = Callable[[Lab, int], Outcome]


def undisturbed(lab: Lab) -> Tables:
    """Tables of a run that nothing disturbed; made once."""
    output = lab.folder / "calm"
    if not output.exists():
        lab.clear()
        lab.label(lab.lake, str(output))
        lab.calm_steps = len(lab.steps())
    return tables(str(output))


def _repeated(
    lab: Lab,
    fault: str,
    times: int,
    once: Callable[[str], float],
    expected: Tables,
    outputs: str = "",
) -> Outcome:
    """`once` over new outputs, below the URL `outputs`: it injects the fault, sees the run through,
    and gives the seconds of recovery. The tables of each are compared with those `expected`.
    """
    total = Outcome(fault)
    for number in range(times):
        lab.clear()
        output = f"{outputs}-{number}" if outputs else lab.new_output()
        seconds = once(output)
        found = compare(tables(output), expected)
        found.injected, found.again, found.recovery = 1, lab.computed_again(), [seconds]
        total.add(found)
    return total


def driver_killed_at_steps(lab: Lab, times: int) -> Outcome:
    """SIGKILL of driver and worker at steps of staging, publishing and committing."""
    expected = undisturbed(lab)
    count = min(times, lab.calm_steps)
    steps = iter(1 + round((i + 0.5) * lab.calm_steps / count - 0.5) for i in range(count))

    def once(output: str) -> float:
        step = next(steps)
        (lab.faults / "kill_at").write_text(str(step))
        run = lab.start(lab.lake, output)
        run.communicate(timeout=240)
        if run.returncode != -signal.SIGKILL:
            raise AssertionError(f"step {step} did not come: exit code {run.returncode}")
        (lab.faults / "kill_at").unlink()
        return lab.label(lab.lake, output)

    return _repeated(lab, "driver and worker killed at each step", count, once, expected)


def driver_killed_at_random(lab: Lab, times: int) -> Outcome:
    """SIGKILL of the driver at moments of no meaning."""

    def once(output: str) -> float:
        run = lab.start(lab.lake, output)
        time.sleep(random.uniform(1, 12))
        run.send_signal(signal.SIGKILL)
        run.communicate()
        return lab.label(lab.lake, output)

    return _repeated(lab, "driver killed at random moments", times, once, undisturbed(lab))


def _killed_in_mid_run(
    lab: Lab, times: int, fault: str, process: str, at_once: bool = False
) -> Outcome:
    """SIGKILL of one of Ray's workers, as soon as something is staged; the same run must end.

    `at_once`: as soon as it is there, for those that have done their work by then.
    """

    def once(output: str) -> float:
        run = lab.start(lab.lake, output)
        ready = partial(lab.processes, process) if at_once else lab.staged
        if not lab.until(ready, run) or not lab.kill(process):
            run.kill()
            raise AssertionError(f"no {process} to be killed: {run.communicate()[1]}")
        return _seconds_to_end(lab, run)

    return _repeated(lab, fault, times, once, undisturbed(lab))


def _seconds_to_end(lab: Lab, run: "subprocess.Popen[str]") -> float:
    began = time.monotonic()
    lab.finish(run)
    return time.monotonic() - began


def detector_killed(lab: Lab, times: int) -> Outcome:
    return _killed_in_mid_run(lab, times, "detector actor killed", "MapBatches(Detector)")


def preparer_killed(lab: Lab, times: int) -> Outcome:
    return _killed_in_mid_run(lab, times, "prepare actor killed", "MapBatches(Preparer)", True)


def decoder_killed(lab: Lab, times: int) -> Outcome:
    return _killed_in_mid_run(lab, times, "decoding process killed", "pipeline.stages.decode", True)


def node_taken_away(lab: Lab, times: int) -> Outcome:
    """A second node, whose raylet and workers are killed in mid-run."""

    def once(output: str) -> float:
        node = lab.ray.add_node(num_cpus=2)
        run = lab.start(lab.lake, output)
        there = lab.until(lab.staged, run)
        lab.ray.remove_node(node, allow_graceful=False)
        if not there:
            raise AssertionError(f"nothing was staged: {run.communicate()[1]}")
        return _seconds_to_end(lab, run)

    return _repeated(lab, "node taken away", times, once, undisturbed(lab))


def ray_killed(lab: Lab, times: int) -> Outcome:
    """The raylet or the control store of a run's own Ray: Ray 2.60 ends the driver with it."""
    expected = undisturbed(lab)
    servers = cycle(["raylet", "gcs_server"])

    def once(output: str) -> float:
        run = lab.start(lab.lake, output, own_ray=True)
        there = lab.until(lab.staged, run)
        server = next(servers)
        ours = psutil.Process(run.pid).children(recursive=True)
        found = [process for process in ours if process.name() == server]
        if not there or not found:
            run.kill()
            raise AssertionError(f"no {server} to be killed: {run.communicate()[1]}")
        found[0].kill()
        _, said = run.communicate(timeout=180)
        if run.returncode not in (0, 1):
            raise AssertionError(f"{server} killed: exit code {run.returncode}: {said}")
        return lab.label(lab.lake, output)

    return _repeated(lab, "Ray's own servers killed", times, once, expected)


def spill_disk_full(lab: Lab, times: int) -> Outcome:
    """No room for objects that Ray would spill, and little memory for them: none are."""
    expected = undisturbed(lab)
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    try:
        with full_disk(lab.folder / "spill") as spill, small_ray(spill) as address:

            def once(output: str) -> float:
                return _seconds_to_end(lab, lab.start(lab.lake, output, address=address))

            return _repeated(lab, "full disk for spilled objects", times, once, expected)
    finally:
        os.environ.pop("RAY_AUTH_MODE")
        if before is not None:
            os.environ["RAY_AUTH_MODE"] = before


@dataclass(frozen=True)
class Planted:
    """A file that does harm, and the status that its row must have."""

    name: str
    content: bytes
    status: str


GOOD = 24  # pictures beside them
HARMFUL = (
    Planted("crash.jpg", b"FAULT-CRASH", "worker_crash"),  # the decoder
    Planted("leave.jpg", b"FAULT-LEAVE", "worker_crash"),
    Planted("end.png", of_one_colour((255, 0, 255)), "worker_crash"),  # the detector
    Planted("fail.png", of_one_colour((0, 255, 255)), "detector_error"),
)


def harmful_pictures(lab: Lab, times: int) -> Outcome:
    """Files that harm among good ones: each is one row, and all others are labelled.

    By detectors that take two calls at once, and in every other turn one.
    """
    total = Outcome("pictures that crash the decoder or end the detector")
    for number in range(times):
        lab.clear()
        lab.calls = 2 - number % 2
        folder = lab.folder / f"planted-{lab.outputs}"
        folder.mkdir()
        for index in range(GOOD):
            (folder / f"{index:02}.png").write_bytes(picture(index + 100 * number))
        for file in HARMFUL:
            (folder / file.name).write_bytes(file.content)
        output = lab.new_output()
        seconds = lab.label(folder, output)
        lab.calls = 1
        rows, _ = tables(output)
        statuses = {Path(row["uri"]).name: row["status"] for row in rows}
        expected = {f"{i:02}.png": "ok" for i in range(GOOD)} | {f.name: f.status for f in HARMFUL}
        wrong = [name for name in expected.keys() & statuses if statuses[name] != expected[name]]
        total.add(
            Outcome(
                "",
                injected=len(HARMFUL),
                lost=len(expected.keys() - statuses.keys()),
                twice=len(rows) - len(statuses),
                differing=len(wrong),
                again=lab.computed_again(),
                recovery=[seconds],
            )
        )
    return total


def two_runs_at_once(lab: Lab, times: int) -> Outcome:
    """The second is refused and names the first; the first ends as ever."""

    def once(output: str) -> float:
        first = lab.start(lab.lake, output)
        assert lab.until(Path(output, paths.LOCK).exists, first)
        second = lab.start(lab.lake, output)
        _, said = second.communicate(timeout=120)
        if second.returncode != 2 or f":{first.pid}" not in said:
            raise AssertionError(f"exit code {second.returncode}: {said}")
        return _seconds_to_end(lab, first)

    return _repeated(lab, "two runs on one OUTPUT", times, once, undisturbed(lab))


def holder_paused(lab: Lab, times: int) -> Outcome:
    """A driver stopped for longer than its lease, whose run another takes over."""

    def once(output: str) -> float:
        paused = lab.start(lab.lake, output)
        assert lab.until(lab.staged, paused)
        paused.send_signal(signal.SIGSTOP)
        seconds = lab.label(lab.lake, output)
        paused.send_signal(signal.SIGCONT)
        _, said = paused.communicate(timeout=120)
        if paused.returncode != 1 or not ("lease" in said or "taken over" in said):
            raise AssertionError(f"who lost its lease: exit code {paused.returncode}: {said}")
        return seconds

    return _repeated(lab, "holder paused, taken over, woken up", times, once, undisturbed(lab))


def in_store(lab: Lab) -> Tables:
    """Tables of an undisturbed run from and to the store; made once."""
    output = f"s3://{BUCKET}/calm"
    if not committed_runs(output):
        lab.clear()
        lab.label(lab.lake_in_store(), output)
    return tables(output)


def faulty_store(lab: Lab, times: int) -> Outcome:
    """One request in ten fails, reading and writing."""
    expected = in_store(lab)

    def once(output: str) -> float:
        failed = lab.store.injected.total()
        lab.store.rate, lab.lease = 0.1, 60  # seconds: a stalled renewal takes half of them
        try:
            seconds = _seconds_to_end(lab, lab.start(f"s3://{BUCKET}/lake", output))
        finally:
            lab.store.rate, lab.lease = 0.0, LEASE_SECONDS
        if lab.store.injected.total() > failed and not report_of(output)["storage_retries"]:
            raise AssertionError("requests failed, and the report counts no retries")
        return seconds

    fault = "store: 503, 500, resets, lost answers, cut and slow bodies, stalls"
    before = lab.store.injected.total()
    total = _repeated(lab, fault, times, once, expected, f"s3://{BUCKET}/faulty")
    total.injected = lab.store.injected.total() - before
    return total


def store_gone(lab: Lab, times: int) -> Outcome:
    """The store ends in mid-run: so does the run, in time, and the next takes it up."""
    return _store_fails(lab, times, "store gone in mid-run", "gone", BUCKET)


def writes_forbidden(lab: Lab, times: int) -> Outcome:
    """Writes are denied from some moment on."""
    return _store_fails(lab, times, "output unwritable in mid-run", "forbidding", "no more writes")


def _store_fails(lab: Lab, times: int, fault: str, way: str, words: str) -> Outcome:
    """The store fails in that `way`; the run must end and say those `words`."""
    expected = in_store(lab)

    def once(output: str) -> float:
        run = lab.start(lab.lake_in_store(), output)
        assert lab.until(lab.staged, run)
        setattr(lab.store, way, True)
        try:
            _, said = run.communicate(timeout=PATIENCE_SECONDS + 180)
        finally:
            setattr(lab.store, way, False)
        clear = "run the same command again" in said and "Traceback" not in said
        if run.returncode != 1 or not clear or words not in said:
            raise AssertionError(f"{way}: exit code {run.returncode}: {said}")
        return lab.label(lab.lake_in_store(), output)

    return _repeated(lab, fault, times, once, expected, f"s3://{BUCKET}/{way}")


@dataclass(frozen=True)
class Case:
    """A scenario, and how often it is injected in `make test` and in `make chaos`."""

    scenario: Scenario
    short: int
    long: int


CASES = [
    Case(driver_killed_at_steps, 1, 1000),
    Case(driver_killed_at_random, 0, 6),
    Case(detector_killed, 0, 3),
    Case(preparer_killed, 0, 3),
    Case(decoder_killed, 0, 3),
    Case(node_taken_away, 0, 3),
    Case(ray_killed, 0, 2),
    Case(spill_disk_full, 0, 1),
    Case(harmful_pictures, 1, 2),
    Case(faulty_store, 0, 3),
    Case(store_gone, 0, 2),
    Case(writes_forbidden, 0, 2),
    Case(two_runs_at_once, 0, 2),
    Case(holder_paused, 0, 2),
]


def short_cases() -> list[Case]:
    return [case for case in CASES if case.short]
