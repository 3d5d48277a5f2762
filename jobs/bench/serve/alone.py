"""Detectors with their decoding, without HTTP and Ray: the most that an endpoint can reach."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from typing import Any

from jobs.serve.engine.detectors import Detecting
from jobs.serve.engine.in_process_engine import InProcessEngine
from jobs.serve.engine.spec import EngineSpec

AHEAD = 8  # images that each detector is given at a time

_engine: InProcessEngine  # of a process of `Alone`


class Alone:
    """As many detectors as the endpoint has, each in a process of its own."""

    def __init__(
        self,
        spec: EngineSpec,
        detectors: int,
        images: Sequence[bytes],
        detecting: type[Detecting],
        arguments: tuple[Any, ...],
    ):
        self._images = images
        self._pools = [
            ProcessPoolExecutor(1, get_context("spawn"), _start, (spec, detecting, arguments))
            for _ in range(detectors)
        ]
        self.images_per_second(0.1)  # all have started, and have computed

    def images_per_second(self, seconds: float) -> float:
        """Compute for some seconds with all detectors at once."""
        turns = [pool.submit(_run, self._images, seconds) for pool in self._pools]
        return sum(turn.result() for turn in turns)

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()


def _start(spec: EngineSpec, detecting: type[Detecting], arguments: tuple[Any, ...]) -> None:
    global _engine
    _engine = InProcessEngine(spec, detecting(spec, *arguments))


def _run(images: Sequence[bytes], seconds: float) -> float:
    return asyncio.run(_rate(images, seconds))


async def _rate(images: Sequence[bytes], seconds: float) -> float:
    number, done = count(), 0
    began = time.perf_counter()

    async def ask() -> None:
        nonlocal done
        while time.perf_counter() < began + seconds:
            await _engine.detect_all([images[next(number) % len(images)]])
            done += 1

    await asyncio.gather(*(ask() for _ in range(AHEAD)))
    return done / (time.perf_counter() - began)
