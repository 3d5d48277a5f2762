"""Whether an image gets the same bits in any batch and in any process, and which operations fail.

Several processes compute the same: two alike, and one with and one without CUBLAS_WORKSPACE_CONFIG,
which decides how much memory cuBLAS has, and so how it multiplies. The first process checks all
operations and batches (lockstep.py, batches.py). The others give digests, which are compared with
those of the first.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import traceback
from contextlib import ExitStack, suppress
from dataclasses import asdict
from threading import Timer
from typing import Any

import torch

from jobs.bench.gpu.batches import Batches, Case, check_detector
from jobs.bench.gpu.context import Context, has_lost_device
from jobs.bench.gpu.growth import learn_growth
from jobs.bench.gpu.journal import VERDICT
from jobs.bench.gpu.lockstep import check_operations
from model.zoo import resolved_precision

COUNTS = (1, 2, 4, 8, 16)
TINY_COUNTS = (1, 2)
MODELS = (
    "deformable-detr",
    "deformable-detr-with-box-refine-two-stage",
    "deformable-detr-single-scale",
)
VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
FIRST = "first"  # name of the process that all others are compared with
# With few cores the threads of two processes wait for each other longer than they compute.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
END_SECONDS = 5.0  # time limit for a process that has nothing left to do
Answer = dict[str, Any]


def run(context: Context) -> None:
    """Compare the answers of the processes, which compute each case at the same time.

    TimeoutError where the step's time is over before the last case.
    """
    names = [case.name for case in list_cases(context.device, context.tiny)]
    with ExitStack() as stack:
        workers = {
            setting: Worker(context, environment, thorough=setting == FIRST)
            for setting, environment in list_settings(context.tiny).items()
        }
        for worker in workers.values():
            stack.callback(worker.close)
        for name in context.left_to_do(names):
            if not context.seconds_left():
                raise TimeoutError(f"the time was over before {name}")
            with context.case(name):
                for worker in workers.values():
                    worker.ask(name)
                answers = {setting: worker.read_answer() for setting, worker in workers.items()}
                context.write(name, VERDICT, **judge_answers(answers))


def list_cases(device: str, tiny: bool) -> list[Case]:
    """List all cases, the most valuable first."""
    if tiny:
        precision = resolved_precision("auto", device)
        cases = [Case("shapes-tiny", precision, padded) for padded in (False, True)]
        return [*cases, Case("shapes-tiny", "int8", True)]
    return [
        Case(model, precision, padded)
        for precision in ("bf16", "mixed", "int8", "fp16")
        for model in MODELS
        for padded in (False, True)
    ]


def list_settings(tiny: bool) -> dict[str, dict[str, str]]:
    """Return the environment of each process."""
    given = dict(os.environ)
    if tiny:
        given |= ONE_THREAD
        return {FIRST: given, "second": given}
    without = {name: value for name, value in given.items() if name != VARIABLE}
    return {
        FIRST: given,
        "second": given,
        f"with {VARIABLE}": given | {VARIABLE: ":4096:8"},
        f"without {VARIABLE}": without,
    }


class Worker:
    """A process that measures cases; it starts at the first case, and again if it has ended."""

    def __init__(self, context: Context, environment: dict[str, str], thorough: bool):
        self.context, self.environment = context, environment
        self.command = [
            sys.executable,
            "-P",
            "-m",
            "jobs.bench.gpu.bits",
            "--device",
            context.device,
        ]
        self.command += ["--tiny"] if context.tiny else []
        self.command += ["--thorough"] if thorough else []
        self.process: subprocess.Popen[str] | None = None
        self.timer: Timer | None = None

    def ask(self, case: str) -> None:
        """Begin to measure a case."""
        if self.process is None or self.process.poll() is not None:
            self.close()
            self._start()
        assert self.process is not None and self.process.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended; `read_answer` reports it
            self.process.stdin.write(case + "\n")
            self.process.stdin.flush()

    def _start(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, text=True, env=self.environment
        )
        self.timer = Timer(self.context.seconds_left(), self.process.kill)
        self.timer.daemon = True
        self.timer.start()

    def read_answer(self) -> Answer:
        """Wait for the answer; it has a reason as "failed" where the process found nothing."""
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries may print, too
                answer: Answer = json.loads(line)
                return answer
        return {"failed": f"its process ended with {self.process.wait()}"}

    def close(self) -> None:
        """End the process: give it no further case, and kill it if it does not end."""
        if self.process is None or self.timer is None:
            return
        self.timer.cancel()
        try:
            self.process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.process = self.timer = None


def judge_answers(answers: dict[str, Answer]) -> dict[str, Any]:
    """Return the fields of a verdict. RuntimeError if a process found nothing."""
    for setting, answer in answers.items():
        if "failed" in answer:
            raise RuntimeError(f"{setting} process: {answer['failed']}")
    first = answers[FIRST]
    processes = {
        setting: compare_answers(first, answer)
        for setting, answer in answers.items()
        if setting != FIRST
    }
    faults = [*list_faults(first), *list_process_faults(processes)]
    same = not faults
    return {
        "same_bits": same,
        "summary": "; ".join([*(faults or ["the same bits everywhere"]), *list_gaps(first)]),
        **first,
        "processes": processes,
    }


def compare_answers(first: Answer, other: Answer) -> dict[str, Any]:
    """Find what differs between two processes.

    These are all differing results, and the first differing operation at each count.
    """
    operations = {}
    for count, digests in first["digests"].items():
        pairs = zip(digests.split(), other["digests"].get(count, "").split(), strict=False)
        at = next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        if at is not None:
            operations[count] = f"call {at}: {first['names'][at]}"
    results = [
        f"{way} at {count}"
        for way, found in first["detector"].items()
        for count, digest in found["digests"].items()
        if digest != other["detector"][way]["digests"].get(count, digest)
    ]
    return {"same": not (operations or results), "operations": operations, "results": results}


def list_faults(answer: Answer) -> list[str]:
    """Describe what is not the same within the first process."""
    checks: dict[str, set[str]] = {}
    for found in answer["operations"].values():
        for failing in found["failing"]:
            checks.setdefault(failing["name"], set()).update(failing["checks"])
    faults = [f"{name} differs ({', '.join(sorted(how))})" for name, how in checks.items()]
    for way, found in answer["detector"].items():
        places = [
            f"{count} ({', '.join(kind for kind, same in by_kind.items() if not same)})"
            for count, by_kind in found["same"].items()
            if not all(by_kind.values())
        ]
        if places:
            faults.append(f"{way}: not the bits of an image alone at {', '.join(places)}")
    return faults


def list_process_faults(processes: dict[str, dict[str, Any]]) -> list[str]:
    """Describe which processes differ from the first."""
    return [
        f"process {setting} differs, at first in {next(iter(found['operations'].values()), '?')}"
        for setting, found in processes.items()
        if not found["same"]
    ]


def list_gaps(answer: Answer) -> list[str]:
    """Describe what was not checked."""
    gaps = [
        f"at {count} images nothing is checked from {found['departed']}"
        for count, found in answer["operations"].items()
        if found["departed"]
    ]
    unclear = {name for found in answer["operations"].values() for name in found["unclear"]}
    gaps += [f"not checked: {', '.join(sorted(unclear))}"] if unclear else []
    if answer["out_of_memory_at"]:
        gaps.append(f"no memory for {answer['out_of_memory_at']} images")
    return gaps


def measure_case(case: Case, device: str, tiny: bool, thorough: bool) -> Answer:
    """Measure all that one process finds out about a case."""
    batches = Batches(case, device, tiny)
    learned = learn_growth(batches.detect_first)
    found = {}
    out_of_memory_at = None
    for count in TINY_COUNTS if tiny else COUNTS:
        try:
            found[count] = check_operations(batches.detect_first, count, learned, thorough)
        except torch.OutOfMemoryError:
            out_of_memory_at = count
            break
    operations = {str(count): asdict(operations) for count, operations in found.items()}
    detector = check_detector(batches, list(found), thorough)
    batches.predictor.give_memory_back()
    names = max((entry.pop("names") for entry in operations.values()), key=len)
    return {
        "counts": list(found),
        "operations": operations,
        "detector": detector,
        "names": names,
        "digests": {count: " ".join(entry.pop("digests")) for count, entry in operations.items()},
        "out_of_memory_at": out_of_memory_at,
    }


def main() -> None:
    """Measure the cases named on standard input; answer each with a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--thorough", action="store_true")
    given = parser.parse_args()
    cases = {case.name: case for case in list_cases(given.device, given.tiny)}
    for line in sys.stdin:
        case = cases[line.strip()]
        try:
            answer = measure_case(case, given.device, given.tiny, given.thorough)
        except Exception as error:  # torch, Triton and drivers raise many kinds of errors
            traceback.print_exc()
            if has_lost_device(error, given.device):
                raise
            reason = str(error).strip().splitlines() or [""]
            answer = {"failed": f"{type(error).__name__}: {reason[0]}"}
        print(json.dumps(answer), flush=True)
        gc.collect()  # a detector and its graphs refer to each other


if __name__ == "__main__":
    main()
