"""How many requests of one client are under way: none may take the places of all others."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.serve.protocol.errors import ApiError


class Places:
    """Counts requests of one kind that are under way, of each client. One event loop may use it."""

    def __init__(self, most: int, kind: str):
        """`kind` is the word for them in errors."""
        self._most, self._kind = most, kind
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, client: str) -> Iterator[None]:
        """Take a place during the block. Raises ApiError with status 429 if there is none left."""
        if self._taken[client] >= self._most:
            raise ApiError(
                429,
                f"{self._most} {self._kind} are under way, as many as there may be at a time: try "
                "again when one has ended.",
                "too_many_at_once",
                headers={"retry-after": "1"},
            )
        self._taken[client] += 1
        try:
            yield
        finally:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]
