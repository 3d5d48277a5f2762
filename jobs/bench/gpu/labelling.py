"""Run `label` as a process of its own, and measure what its processes use of the machine.

`python -m jobs.bench.gpu.labelling CALLS FOLDER OPTIONS` is `label` with OPTIONS, the fields of
LabelOptions as JSON. Its detectors take CALLS calls at once, and log their batches into FOLDER.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import psutil

from jobs.bench.gpu.clocks import read_use
from jobs.bench.gpu.fill import Fill, read_fill
from jobs.output import paths
from pipeline.storage.errors import CommandFailed

# Kinds of processes.
DRIVER = "driver"  # the command itself
DETECTORS, PREPARERS = "detectors", "preparers"
OTHERS = "others"  # other workers of Ray: readers, stagers and idle ones
RAY = "Ray"  # Ray's own servers
# The kind of a process by a part of its title; decoders are children of preparers.
TITLES = {"Detector)": DETECTORS, "Preparer)": PREPARERS, "pipeline.stages.decode": PREPARERS}

SAMPLE_SECONDS = 0.5
GRACE_SECONDS = 10.0  # between the request to end and a kill


def kind_of(title: str) -> str:
    """The kind of a process that the driver started, by its title or command line."""
    for part, kind in TITLES.items():
        if part in title:
            return kind
    is_worker = title.startswith("ray::") and not title.endswith("Agent")
    return OTHERS if is_worker or "pipeline.isolation.child" in title else RAY


@dataclass(frozen=True)
class Sample:
    """The state of a run at one moment."""

    seconds: float  # time.monotonic()
    cpu_seconds: dict[int, float]  # by process id, up to now, ended processes included
    blocks: int  # blocks staged up to now
    device_use: float | None  # use of the device, as its driver reports it


class Watch:
    """Samples a run at intervals."""

    def __init__(self, driver: int, output: Path, device: str):
        self._driver = psutil.Process(driver)
        self._blocks = f"{escape(str(output))}/{paths.blocks('*')}/block-*"
        self._device = device
        self._cpu_seconds: dict[int, float] = {}
        self._kinds: dict[int, str] = {driver: DRIVER}
        self.samples: list[Sample] = []

    def look(self) -> None:
        """Add a sample. An ended process keeps the CPU time of its last sample."""
        try:
            processes = [self._driver, *self._driver.children(recursive=True)]
        except psutil.Error:  # the driver has just ended
            processes = []
        for process in processes:
            try:
                self._read(process)
            except psutil.Error:  # the process ended meanwhile
                continue
        blocks, use = len(glob(self._blocks)), self._device_use()
        self.samples.append(Sample(time.monotonic(), dict(self._cpu_seconds), blocks, use))

    def _device_use(self) -> float | None:
        try:
            return read_use(self._device)
        except Exception:  # NVML does not report it for all devices
            return None

    def _read(self, process: psutil.Process) -> None:
        times, title = process.cpu_times(), " ".join(process.cmdline())
        before = self._cpu_seconds.get(process.pid, 0.0)
        self._cpu_seconds[process.pid] = max(before, float(times.user + times.system))
        # A worker is called idle before it becomes an actor, and it stays an actor afterwards.
        if self._kinds.get(process.pid, OTHERS) in (OTHERS, RAY):
            self._kinds[process.pid] = kind_of(title)

    def cpu_seconds(self, between: tuple[int, int] | None = None) -> dict[str, float]:
        """Return CPU seconds by kind between two samples, or of the whole run."""
        before = self.samples[between[0]].cpu_seconds if between else {}
        after = self.samples[between[1] if between else -1].cpu_seconds
        taken = dict.fromkeys((DRIVER, DETECTORS, PREPARERS, OTHERS, RAY), 0.0)
        for process, seconds in after.items():
            taken[self._kinds[process]] += seconds - before.get(process, 0.0)
        return taken

    def steady(self) -> tuple[int, int] | None:
        """Return the samples with the first and last blocks; None if all blocks came at once."""
        blocks = [sample.blocks for sample in self.samples]
        grew = [index for index in range(1, len(blocks)) if blocks[index] > blocks[index - 1]]
        return (grew[0], grew[-1]) if len(grew) > 1 else None


@dataclass(frozen=True)
class Labelled:
    """A `label` run that has ended without an error."""

    seconds: float  # of the whole command
    watch: Watch
    fill: Fill


def run_label(output: Path, options: dict[str, Any], calls: int, device: str) -> Labelled:
    """Run `label` into OUTPUT with these fields of LabelOptions, and watch it until it ends.

    `calls` is the number of calls that a detector takes at once. `device` is the device as torch
    names it. CommandFailed, with the last line of the output, if `label` fails.
    """
    given = json.dumps({**options, "output": str(output)})
    command = [sys.executable, "-P", "-m", "jobs.bench.gpu.labelling", str(calls)]
    # The run must not use a cluster that this machine's environment names.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with TemporaryFile() as log, TemporaryDirectory(prefix="detr-batch-fill-") as batches:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, batches, given], stdout=log, stderr=log, env=environment
        )
        watch = Watch(process.pid, output, device)
        try:
            code = _wait(process, watch)
            seconds = time.perf_counter() - began
        finally:
            _end(process)
        log.seek(0)
        output_text = log.read().decode(errors="replace")
        if code:
            print(output_text, file=sys.stderr)
            raise CommandFailed(
                f"label failed: {(output_text.strip().splitlines() or ['no word of why'])[-1]}"
            )
        return Labelled(seconds, watch, read_fill(Path(batches)))


def _wait(process: subprocess.Popen[bytes], watch: Watch) -> int:
    """Take samples until the process ends, and return its exit code."""
    while True:
        watch.look()
        try:
            return process.wait(SAMPLE_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that may still run; ask first, so that Ray ends its own processes."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> int:
    """Run `label` with detectors that log, and take the given number of calls at once."""
    from jobs.bench.gpu.watched import watch_detectors
    from jobs.cluster import placement
    from jobs.label.label import label
    from jobs.label.options import LabelOptions

    calls, folder, options = sys.argv[1:]
    vars(placement).update(CPU_CALLS=int(calls), GPU_CALLS=int(calls))  # looked up by its functions
    watch_detectors(folder)
    return label(LabelOptions(**json.loads(options)))


if __name__ == "__main__":
    sys.exit(main())
