"""The slow tests of a day: `.ci/run` has no time for all of them, and runs others each day."""

import math
import time
from collections.abc import Sequence
from datetime import date
from hashlib import sha256
from itertools import groupby

import pytest


def order_of_day(files: Sequence[str], day: date) -> list[str]:
    """The test files in the order in which they run on `day`.

    In as many days in a row as there are files, each file is the first one once. The starts of
    neighbouring days lie up to a third of the files apart, so that a few days reach most of them.
    """
    if not files:
        return []
    count = len(files)
    files = sorted(files, key=lambda file: sha256(file.encode()).digest())
    step = max(n for n in range(1, max(1, count // 3) + 1) if math.gcd(n, count) == 1)
    start = day.toordinal() * step % count
    return files[start:] + files[:start]


class DailySlice:
    """A plugin of pytest that runs tests in the order of the day, and starts none after a time.

    It must be the only process: a slice is not for pytest-xdist.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.began = time.monotonic()
        self.left_out = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        groups = groupby(items, lambda item: item.nodeid.partition("::")[0])
        by_file = {file: list(tests) for file, tests in groups}
        items[:] = [
            test for file in order_of_day([*by_file], date.today()) for test in by_file[file]
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if time.monotonic() - self.began > self.minutes * 60:
            self.left_out += 1
            pytest.skip("this test is left to another day")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.left_out:
            terminalreporter.write_line(f"{self.left_out} slow tests are left to other days")
