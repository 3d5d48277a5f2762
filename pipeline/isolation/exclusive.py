"""Concurrent calls of one actor, and exclusive sections for which all other calls wait."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ExclusiveCalls:
    """A lock for the threads of a process, with shared calls and exclusive sections."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls = 0
        self._waiting = 0  # number of threads that wait for an exclusive section or are in one
        self._alone: int | None = None  # id of the thread that is in an exclusive section

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Run a call concurrently with others. It waits while a thread needs exclusive access."""
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
        """Run a section of a `shared` call alone.

        The section starts when all other calls have finished or wait here as well. No call starts
        before it ends. The thread that is in the section may enter it again.
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
