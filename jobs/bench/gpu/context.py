"""The context of each step of a GPU bench: the device, its time, and where results go."""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from jobs.bench.gpu.journal import BEGUN, FAILED, LEFT_OUT, REFUSED, TIMING, Journal
from jobs.bench.measure import Measurement, milliseconds, timer
from jobs.bench.measure import Wrong as Wrong


class Absent(Exception):
    """This machine lacks what a case needs."""


@dataclass(frozen=True)
class Context:
    """One step on one device.

    `tiny` asks for small shapes and few cases, so that all steps run on a CPU in minutes.
    """

    step: str
    folder: Path
    device: str
    tiny: bool
    deadline: float  # in seconds of time.monotonic()
    journal: Journal = field(init=False)
    finished: set[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "journal", Journal(self.folder))
        object.__setattr__(self, "finished", self.journal.finished_cases(self.step))

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def seconds_left(self) -> float:
        """Return the seconds until the step is ended; 0 if they are over."""
        return max(0.0, self.deadline - time.monotonic())

    def left_to_do(self, cases: Iterable[str]) -> Iterator[str]:
        """Return the cases that the journal does not have yet."""
        return (case for case in cases if case not in self.finished)

    def write(self, case: str, kind: str, **fields: Any) -> None:
        """Add a record of this step."""
        self.journal.write(self.step, case, kind, **fields)

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Run a case; an error ends this case alone, and goes into the journal with its reason."""
        began = time.monotonic()
        self.write(name, BEGUN)
        try:
            yield
        except Wrong as error:
            self.write(name, REFUSED, reason=str(error))
        except Absent as error:
            self.write(name, LEFT_OUT, reason=str(error))
        except Exception as error:  # torch, Triton, peers and drivers raise many kinds of errors
            traceback.print_exc()
            if has_lost_device(error, self.device):
                raise
            lines = str(error).strip().splitlines() or [""]
            seconds = time.monotonic() - began
            self.write(name, FAILED, reason=f"{type(error).__name__}: {lines[0]}", seconds=seconds)
        finally:
            if self.on_gpu:
                torch.cuda.empty_cache()

    def time(
        self, run: Callable[[], object], seconds: float, recorded: bool = False, fewest: int = 3
    ) -> list[float]:
        """Warm `run` up, then return the seconds of each run, for about `seconds` in total.

        There are at least `fewest` runs. `recorded` is as in `jobs.bench.measure.timer`.
        """
        for _ in range(1 if self.tiny else 2):
            run()
        timed = timer(run, self.device, recorded)
        took: list[float] = []
        while len(took) < fewest or sum(took) < seconds:
            took.append(timed())
        return took

    def write_timing(
        self,
        case: str,
        subject: str,
        batch: int,
        precision: str,
        took: list[float],
        *,
        images: int | None = None,
        row_case: str | None = None,
        memory: int | None = None,
        error: float = 0.0,
        **details: Any,
    ) -> None:
        """Add a timing in the form of a row of the results.

        `took` are seconds, each for `images` images (None: not for images). `row_case` is the row's
        case where several subjects share one. `details` go into the row unchanged.
        """
        spread = milliseconds(took)
        row = Measurement(
            benchmark=f"gpu {self.step}",
            case=row_case or case,
            subject=subject,
            batch=batch,
            precision=precision,
            **spread,
            images_per_second=None if images is None else 1e3 * images / spread["p50_ms"],
            peak_memory_mib=memory,
            error=error,
            details=details,
        )
        self.write(case, TIMING, row=asdict(row))


def has_lost_device(error: Exception, device: str) -> bool:
    """Whether CUDA answers every later call of this process with an error, too.

    Triton and cuBLAS raise a RuntimeError where torch raises an AcceleratorError.
    """
    if isinstance(error, torch.AcceleratorError) and "out of memory" not in str(error):
        return True
    try:
        if device != "cpu":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False
