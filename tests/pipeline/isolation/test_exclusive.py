"""Calls run side by side, except for a call that must run alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pipeline.isolation.exclusive import ExclusiveCalls

LONG = 10.0  # seconds; a test that waits that long has failed


def test_calls_run_side_by_side() -> None:
    turns, met = ExclusiveCalls(), threading.Barrier(2)

    def call() -> None:
        with turns.shared():
            met.wait(LONG)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(call) for _ in range(2)]:
            done.result(LONG)


def test_who_is_alone_waits_for_the_others_and_they_for_it() -> None:
    turns, both, begun = ExclusiveCalls(), threading.Barrier(2), threading.Event()
    events: list[str] = []

    def other() -> None:
        with turns.shared():
            both.wait(LONG)
            time.sleep(0.2)
            events.append("other ends")
        begun.wait(LONG)
        with turns.shared():
            events.append("other again")

    def suspicious() -> None:
        with turns.shared():
            both.wait(LONG)
            with turns.exclusive():
                events.append("alone")
                begun.set()
                time.sleep(0.2)
                events.append("no more")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(call) for call in (other, suspicious)]:
            done.result(LONG)
    assert events == ["other ends", "alone", "no more", "other again"]


def test_two_that_want_to_be_alone_take_turns() -> None:
    turns, both = ExclusiveCalls(), threading.Barrier(2)
    inside = 0

    def call() -> None:
        nonlocal inside
        with turns.shared():
            both.wait(LONG)
            for _ in range(20):
                with turns.exclusive():
                    inside += 1
                    assert inside == 1
                    time.sleep(0.001)
                    inside -= 1

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(call) for _ in range(2)]:
            done.result(LONG)
    with turns.shared(), turns.exclusive():
        pass


def test_who_waits_to_be_alone_is_next() -> None:
    turns, there, release = ExclusiveCalls(), threading.Barrier(2), threading.Event()
    events: list[str] = []

    def long() -> None:
        with turns.shared():
            there.wait(LONG)
            release.wait(LONG)

    def suspicious() -> None:
        with turns.shared():
            there.wait(LONG)
            with turns.exclusive(), turns.exclusive():  # an exclusive call may be nested
                events.append("alone")

    def late() -> None:
        with turns.shared():
            events.append("late")

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(call) for call in (long, suspicious)]
        deadline = time.monotonic() + LONG
        while not turns._waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        waiting.append(pool.submit(late))
        time.sleep(0.1)
        assert not events
        release.set()
        for done in waiting:
            done.result(LONG)
    assert events == ["alone", "late"]
