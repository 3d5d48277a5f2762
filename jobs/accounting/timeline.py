"""A run over time: images and CPU time so far. The number of points is bounded for any length."""

from collections.abc import Iterator
from typing import TypedDict

import psutil

MOST_POINTS = 200


class Point(TypedDict):
    """The progress of a run at one time."""

    seconds: float  # since it began
    images: int  # number of images done so far
    cpu_seconds: float | None  # used so far; None if not measured


class Timeline:
    """Images in buckets of one second. The width doubles as a run grows longer."""

    def __init__(self) -> None:
        self.width = 1.0  # width of a bucket in seconds
        self._images: dict[int, int] = {}
        self._cpu: dict[int, float] = {}

    def add(self, seconds: float, images: int) -> None:
        """Add `images` that were done `seconds` after the run began."""
        bucket = self._bucket(seconds)
        self._images[bucket] = self._images.get(bucket, 0) + images

    def add_cpu(self, seconds: float, cpu_seconds: float) -> None:
        """Add that the run had used `cpu_seconds`, `seconds` after it began."""
        bucket = self._bucket(seconds)
        self._cpu[bucket] = max(self._cpu.get(bucket, 0.0), cpu_seconds)

    def _bucket(self, seconds: float) -> int:
        while seconds >= self.width * MOST_POINTS:
            self.width *= 2
            images, cpu = self._images, self._cpu
            self._images, self._cpu = {}, {}
            for bucket, count in images.items():
                self._images[bucket // 2] = self._images.get(bucket // 2, 0) + count
            for bucket, used in cpu.items():
                self._cpu[bucket // 2] = max(self._cpu.get(bucket // 2, 0.0), used)
        return max(0, int(seconds / self.width))

    def points(self) -> list[Point]:
        """One point at the end of each bucket that is not empty, behind a first point at 0."""
        done = 0
        points = [Point(seconds=0.0, images=0, cpu_seconds=0.0 if self._cpu else None)]
        for bucket in sorted(self._images.keys() | self._cpu.keys()):
            done += self._images.get(bucket, 0)
            end = (bucket + 1) * self.width
            points.append(Point(seconds=end, images=done, cpu_seconds=self._cpu.get(bucket)))
        return points


class CpuMeter:
    """CPU seconds of this process and all its child processes, which are all of a local run."""

    def __init__(self, of_process: bool = False) -> None:
        """`of_process` counts from the creation of this process, else the meter counts from now."""
        self._before = 0.0 if of_process else self._now()
        self._most = 0.0

    def seconds(self) -> float:
        """CPU seconds since this meter was made, or since this process was created.

        The time of a process that is killed between two calls may be missing.
        """
        self._most = max(self._most, self._now() - self._before)
        return self._most

    def _now(self) -> float:
        own = psutil.Process()
        return sum(sum(_times(process)) for process in [own, *own.children(recursive=True)])


def _times(process: psutil.Process) -> Iterator[float]:
    try:
        times = process.cpu_times()
    except psutil.Error:  # the process ended meanwhile, and its parent counts its time
        return
    yield from (times.user, times.system)
    # The times of children that ended. Not every system has them.
    yield from (getattr(times, "children_user", 0.0), getattr(times, "children_system", 0.0))


def rates(
    points: list[Point], parts: int, steady: float | None
) -> list[tuple[float, float, float | None]]:
    """(seconds, images/s, busy CPUs) at the middle of each of `parts` equal parts of a run.

    Images and CPU time are interpolated linearly between points. The first images are an exception:
    they are assumed to come at the `steady` rate, after the start-up. Busy CPUs are None if CPU
    time was not measured.
    """
    end = points[-1]["seconds"] if points else 0.0
    if not end:
        return []
    edges = [end * part / parts for part in range(parts + 1)]
    done = [(p["seconds"], float(p["images"])) for p in points]
    first = next((k for k, (_, images) in enumerate(done) if images), 0)
    if steady and first:
        began = max(done[first - 1][0], done[first][0] - done[first][1] / steady)
        done.insert(first, (began, 0.0))
    images = _between(done, edges)
    known = [(p["seconds"], c) for p in points if (c := p["cpu_seconds"]) is not None]
    cpu = _between(known, edges) if len(known) > 1 else None
    width = end / parts
    return [
        (
            (edges[k] + edges[k + 1]) / 2,
            (images[k + 1] - images[k]) / width,
            None if cpu is None else (cpu[k + 1] - cpu[k]) / width,
        )
        for k in range(parts)
    ]


def _between(points: list[tuple[float, float]], at: list[float]) -> list[float]:
    """Interpolate `points` linearly at the ascending positions `at`. Constant outside of them."""
    import numpy as np

    positions, values = zip(*points, strict=True)
    return [float(value) for value in np.interp(at, positions, values)]
