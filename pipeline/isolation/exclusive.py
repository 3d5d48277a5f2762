"""Calls of one actor that run side by side, and work for which all others wait."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ExclusiveCalls:
    """Hands out turns to the threads of a process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls = 0
        self._waiting = 0  # to be alone
        self._alone: int | None = None  # the thread that is

    @contextmanager
    def shared(self) -> Iterator[None]:
        """A call, beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within `beside`: once all other calls are over or wait here too; none begins then.

        It may be entered again from within.
        """
        if self._alone == threading.get_ident():
            yield
            return
        with self._changed:
            self._calls -= 1
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._calls == 0)
            self._alone = threading.get_ident()
            try:
                yield
            finally:
                self._alone = None
                self._waiting -= 1
                self._calls += 1
                self._changed.notify_all()
