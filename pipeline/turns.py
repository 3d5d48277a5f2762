"""Calls of one actor that run side by side, and work for which all others wait."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Hands out turns to the threads of a process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls = 0

    @contextmanager
    def beside(self) -> Iterator[None]:
        """A call, beside others."""
        with self._changed:
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within `beside`: once all other calls are over or wait here too; none begins then."""
        with self._changed:
            self._calls -= 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._calls == 0)
            try:
                yield
            finally:
                self._calls += 1
