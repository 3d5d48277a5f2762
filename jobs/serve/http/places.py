"""How much of one client is under way: none may take the places of all others."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.serve.protocol.errors import ApiError


class Places:
    """Counts what is under way, of each client. One event loop may use it.

    What is taken while nothing else is under way may be any number.
    """

    def __init__(self, most: int, kind: str):
        """`kind` is the word for them in errors."""
        self._most, self._kind = most, kind
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, client: str, count: int = 1) -> Iterator[None]:
        """Take places during the block. Raises ApiError with status 429 if too few are left."""
        self.take(client, count)
        try:
            yield
        finally:
            self.give(client, count)

    def take(self, client: str, count: int = 1) -> None:
        """Take places until `give`. Raises ApiError with status 429 if too few are left."""
        if self._taken[client] and self._taken[client] + count > self._most:
            raise ApiError(
                429,
                f"At most {self._most} {self._kind} may be under way at a time: try again when one "
                "has ended.",
                "too_many_at_once",
                headers={"retry-after": "1"},
            )
        self._taken[client] += count

    def give(self, client: str, count: int = 1) -> None:
        """Give places back."""
        self._taken[client] -= count
        if not self._taken[client]:
            del self._taken[client]
