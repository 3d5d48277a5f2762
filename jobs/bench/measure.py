"""Timings that hold on shared machines, and the file that keeps them."""

import csv
import io
import json
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch

from jobs.accounting.plurals import counted
from model.cuda_graphs import record
from pipeline.storage.errors import InputError

RESULTS = Path(__file__).with_name("measurements.csv")
FEWEST_ROUNDS = 3
NO_COMMIT = "not a checkout"
Name = TypeVar("Name", bound=Hashable)


class Wrong(RuntimeError):
    """A result is wrong, so it is not timed."""


@dataclass(frozen=True)
class Measurement:
    """One row of the results: what ran, how long, and with what error."""

    benchmark: str
    case: str  # the model, or the shape
    subject: str  # what was timed
    batch: int
    precision: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    images_per_second: float | None  # at the median time; None: the subject does not process images
    peak_memory_mib: int | None  # of a process of its own; None: not measured
    error: float  # largest difference from the reference, as a share of its largest number
    ap: float | None = None  # COCO's average precision, in [0, 1]; None: not known
    details: dict[str, Any] = field(default_factory=dict)  # other measurements, as JSON


def say_progress(text: str) -> None:
    """Print what takes time now, for people who wait for it."""
    print(text, file=sys.stderr, flush=True)


def interleaved(
    subjects: Mapping[Name, Callable[[], float]], seconds: float
) -> dict[Name, list[float]]:
    """Run all subjects in turn, in a new order each round, for about `seconds` in total.

    Other load on the machine thus affects all of them alike. Each subject returns the seconds that
    it took. There are at least FEWEST_ROUNDS rounds; the caller has warmed the subjects up.
    """
    say_progress(f"timing {counted(len(subjects), 'subject')} in turn, for about {seconds:g} s")
    took: dict[Name, list[float]] = {name: [] for name in subjects}
    order = list(subjects)
    while sum(map(sum, took.values())) < seconds or len(took[order[0]]) < FEWEST_ROUNDS:
        random.shuffle(order)
        for name in order:
            took[name].append(subjects[name]())
    return took


def timer(run: Callable[[], object], device: str, recorded: bool = False) -> Callable[[], float]:
    """Return a function that times one `run` until its result is ready, in seconds.

    On GPUs `recorded` measures the device's own time of a CUDA graph of `run`, as detectors use it,
    because launching a small kernel takes the host longer than the kernel runs. `run` must not wait
    for the device then.
    """
    if device == "cpu" or not recorded:
        return partial(_by_the_clock, run, device)
    with torch.cuda.device(device):
        graph, _ = record(run)
    return partial(_by_the_gpu, graph, device)


def _by_the_clock(run: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _by_the_gpu(graph: torch.cuda.CUDAGraph, device: str) -> float:
    with torch.cuda.device(device):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()  # keeps the device busy while the host launches the next
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
    return began.elapsed_time(ended) / 1e3


class Spread(TypedDict):
    """The times of Measurement."""

    p20_ms: float
    p50_ms: float
    p80_ms: float


def milliseconds(took: list[float]) -> Spread:
    """Return the 20th, 50th and 80th percentile of seconds, in milliseconds."""
    p20, p50, p80 = (1e3 * float(value) for value in np.percentile(took, (20, 50, 80)))
    return {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80}


def device_name(device: str) -> str:
    """Return the GPU's name, or the processor's name and its number of threads."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {torch.get_num_threads()} threads"


def environment(device: str) -> dict[str, str]:
    """Describe what a row holds for: the date, the commit, the device and the versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "git_sha": commit(),
        "device": device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def append(measurements: list[Measurement], device: str, path: Path = RESULTS) -> None:
    """Add rows that were measured here and now. InputError for a file with other columns."""
    added = append_rows([environment(device) | asdict(row) for row in measurements], path)
    say_progress(f"{counted(added, 'row')} added to {path}")


def append_rows(rows: list[dict[str, Any]], path: Path = RESULTS) -> int:
    """Add rows of `environment` and `Measurement`, except those already there; return their number.

    InputError for a file with other columns.
    """
    names = [*environment("cpu"), *(column.name for column in fields(Measurement))]
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.read_text().splitlines() if path.exists() else []
    if known and next(csv.reader(known[:1])) != names:
        raise InputError(f"{path} has other columns than these rows: name another file")
    lines = [_csv_line(names)] + [
        _csv_line([_as_text(row[name]) for name in names]) for row in rows
    ]
    fresh = [line for line in dict.fromkeys(lines) if line not in set(known)]
    with path.open("a", newline="") as file:
        file.writelines(line + "\n" for line in fresh)
    return len(fresh) - (not known)


def _csv_line(values: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()


def _as_text(value: Any) -> str:
    """Format a number with four digits, a dictionary as JSON, and None as ""."""
    if isinstance(value, dict):
        return json.dumps(value, separators=(",", ":")) if value else ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def commit() -> str:
    """Return the commit of this checkout, with a + if files differ from it."""
    if shutil.which("git") is None:
        return NO_COMMIT
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    found = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return (found + "+" * bool(changed)) or NO_COMMIT


def as_table(measurements: list[Measurement], baseline: str) -> str:
    """Make a table for people: medians, and how many times faster each is than `baseline`."""
    lines = []
    for case, batch in dict.fromkeys((m.case, m.batch) for m in measurements):
        rows = [m for m in measurements if (m.case, m.batch) == (case, batch)]
        base = next((m for m in rows if m.subject == baseline), rows[0])
        lines.append(f"{case} (batch {batch})")
        for m in sorted(rows, key=lambda m: m.p50_ms):
            memory = f" {m.peak_memory_mib:6d} MiB" if m.peak_memory_mib else ""
            known = "" if m.ap is None else f" AP {m.ap:.4f}"
            ratio = f"{base.p50_ms / m.p50_ms:7.2f} x {base.subject}"
            lines.append(
                f"  {m.subject:<28} {m.precision:<13} {m.p50_ms:10.2f} ms "
                f"({m.p20_ms:.2f} to {m.p80_ms:.2f}) {ratio}  error {m.error:.1e}{memory}{known}"
            )
    return "\n".join(lines)
