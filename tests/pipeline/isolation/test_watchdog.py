"""A dataflow that gives no results for too long ends by itself."""

import signal
import time
from collections.abc import Iterator

import pytest
import ray

from pipeline.isolation.watchdog import Stalled, end_when_stalled


def slowly(waits: list[float]) -> Iterator[int]:
    for number, seconds in enumerate(waits):
        time.sleep(seconds)
        yield number


def test_what_comes_in_time_passes() -> None:
    assert list(end_when_stalled(slowly([0.3, 0.3, 0.3]), 0.6)) == [0, 1, 2]


def test_what_stands_still_ends() -> None:
    found = end_when_stalled(slowly([0, 60]), 0.5)
    assert next(found) == 0
    with pytest.raises(Stalled, match="nothing was labelled"):
        next(found)


def test_errors_pass_through() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("x")

    with pytest.raises(KeyError):
        list(end_when_stalled(broken(), 5))


@pytest.mark.usefixtures("local_ray")
def test_rays_waiting_is_interrupted() -> None:
    def stuck(row: dict[str, int]) -> dict[str, int]:
        time.sleep(600)
        return row

    flow = ray.data.from_items([{"x": 1}]).map(stuck)
    began = time.monotonic()
    with pytest.raises(Stalled):
        list(end_when_stalled(flow.iter_batches(), 5))
    assert time.monotonic() - began < 60


def test_it_ends_where_interrupts_are_ignored() -> None:
    """Commands that a shell starts in the background ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Stalled):
            list(end_when_stalled(slowly([60]), 0.3))
    finally:
        signal.signal(signal.SIGINT, before)


def test_items_end_when_no_time_is_left_also_while_one_is_waited_for() -> None:
    until = time.monotonic() + 0.7
    began = time.monotonic()
    found = list(end_when_stalled(slowly([0.2, 0.2, 60]), 600, lambda: until - time.monotonic()))
    assert found == [0, 1] and 0.6 < time.monotonic() - began < 10


def test_time_that_is_left_may_grow_meanwhile() -> None:
    looks = iter([0.1, 0.1, 5.0, 5.0, 5.0, 0.0])
    assert list(end_when_stalled(slowly([0.5, 0.1, 0.1]), 600, lambda: next(looks))) == [0, 1, 2]


def test_what_stands_still_ends_with_time_left() -> None:
    with pytest.raises(Stalled):
        list(end_when_stalled(slowly([60]), 0.3, lambda: 1000.0))


def test_the_items_are_closed_when_no_time_is_left() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    looks = iter([9.0, 9.0, 0.0])
    assert list(end_when_stalled(items(), 600, lambda: next(looks))) == [0, 1]
    assert closed
