"""Run all steps of a GPU bench, one after the other.

Each step is a process with a deadline of its own.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from jobs.bench.gpu import STEPS
from jobs.bench.gpu.environment import code_digest
from jobs.bench.gpu.journal import CRASHED, CUT, ENVIRONMENT, FAILED, Journal
from jobs.bench.gpu.poison import CPU_POISON
from jobs.bench.measure import device_name
from pipeline.storage.errors import InputError

# Shares of the time; the time that a step leaves goes to the steps after it.
SHARES = {
    "ceilings": 2,
    "gates": 11,
    "bits": 8,
    "rates": 10,
    "mix": 5,
    "peers": 14,
    "choices": 6,
    "flow": 10,
}
GRACE_SECONDS = 5.0  # between the request to end and a kill
LOG = "gpu.log"  # output of the steps, beside their journal


@dataclass(frozen=True)
class GpuRequest:
    """The steps to run, and where."""

    out: Path
    seconds: float  # for all steps together
    steps: tuple[str, ...]
    device: str
    tiny: bool  # few cases with small shapes

    def check(self) -> None:
        """InputError for values that make no sense, or not on this machine."""
        if unknown := sorted(set(self.steps) - set(STEPS)):
            raise InputError(f"--steps {','.join(unknown)}: choose from {','.join(STEPS)}")
        if self.seconds <= 0:
            raise InputError(f"--seconds {self.seconds:g}: give more than 0")
        try:
            torch.empty(1, device=self.device)
        # torch without CUDA raises an AssertionError
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"--device {self.device}: it cannot be used here ({reason}). To see that all "
                "works without a GPU: --device cpu --tiny"
            ) from error
        self._check_folder()

    def _check_folder(self) -> None:
        """InputError for a folder with results of another device, code or size."""
        here = (device_name(self.device), code_digest(), self.tiny)
        for record in Journal(self.out).records():
            if record["kind"] == ENVIRONMENT:
                found = (record["row"]["device"], record["code"], record["tiny"])
                if found != here:
                    raise InputError(
                        f"--out {self.out} has results of another device, version or size "
                        f"({found[0]}): give another folder"
                    )


def run_steps(options: GpuRequest) -> bool:
    """Run the steps that the folder does not have yet; return whether all of them were finished.

    InputError for bad options, before anything is written.
    """
    options.check()
    options.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(options.out)
    finished = journal.finished_steps()
    todo = [step for step in STEPS if step in options.steps and step not in finished]
    for step in sorted(set(options.steps) & finished, key=STEPS.index):
        _say(f"{step}: {options.out} has it already")
    end = time.monotonic() + options.seconds
    for index, step in enumerate(todo):
        left = end - time.monotonic()
        seconds = left * share_of(step) / sum(map(share_of, todo[index:]))
        began = time.monotonic()
        reason = run_step(options, step, max(seconds, 0.0))
        took = time.monotonic() - began
        _say(f"{step}: {reason or 'done'} after {took:.0f} of {seconds:.0f} s")
    unfinished = [step for step in todo if step not in journal.finished_steps()]
    if unfinished:
        _say(f"to go on, with the same --out or another one: --steps {','.join(unfinished)}")
    return not unfinished


def share_of(step: str) -> int:
    """Return the step's share of the time. Where Ray is absent, `flow` only reports that."""
    return 1 if step == "flow" and find_spec("ray") is None else SHARES[step]


def run_step(options: GpuRequest, step: str, seconds: float) -> str:
    """Run one step for at most `seconds`; return why it was not finished, or "".

    A case that ends the process is marked, and a new process continues after it.
    """
    journal = Journal(options.out)
    end = time.monotonic() + seconds
    while True:
        code = _run_process(options, step, max(0.0, end - time.monotonic()))
        if code == 0:
            return ""
        if code is None:
            journal.write(step, "", CUT, seconds=seconds)
            return "its time was over"
        reason = f"its process ended with {code}, see {options.out / LOG}"
        case = journal.case_under_way(step)
        if case is None:
            journal.write(step, "", FAILED, reason=reason)
            return reason
        journal.write(step, case, CRASHED, reason=reason)


def _run_process(options: GpuRequest, step: str, seconds: float) -> int | None:
    """Run a step's process and return its exit code; None if its time was over."""
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", "jobs.bench.gpu.step", step]
    command += ["--out", str(options.out), "--device", options.device]
    command += ["--deadline", str(time.monotonic() + seconds)]  # all processes share this clock
    command += ["--tiny"] if options.tiny else []
    with (options.out / LOG).open("ab") as log:
        log.write(f"--- {step}\n".encode())
        log.flush()
        poisoned = step == "gates" and options.device == "cpu"
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that the processes that it starts can be ended with it
            env=os.environ | (CPU_POISON if poisoned else {}),
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_session(process)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started; ask first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        _wait_for_group(process)
    process.wait()


def _wait_for_group(process: subprocess.Popen[bytes]) -> None:
    """Wait until no process of the session is left, GRACE_SECONDS at most."""
    end = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < end:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def steps_named(names: str) -> tuple[str, ...]:
    """Return steps from names separated by commas, in any order; "all" means all steps."""
    return STEPS if names == "all" else tuple(dict.fromkeys(names.split(",")))


def _say(text: str) -> None:
    print(f"bench gpu: {text}", file=sys.stderr, flush=True)
