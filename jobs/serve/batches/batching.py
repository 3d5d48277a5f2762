"""The deployment that works on batches: one replica, beside those that answer requests."""

from jobs.serve.batches.batches import Batches
from jobs.serve.batches.settings import BatchSettings
from jobs.serve.batches.store import Store


class Batching:
    """Goes on with the open batches of a store from its start to its end."""

    def __init__(self, url: str, settings: BatchSettings):
        self._batches = Batches(Store(url), settings)
        self._batches.start()

    def check_health(self) -> None:
        """Raise if the thread has ended: Ray Serve then replaces this replica."""
        if not self._batches.is_working():
            raise RuntimeError("the thread that works on batches has ended")

    def __del__(self) -> None:
        """Ray Serve calls this before it ends the replica."""
        self._batches.close()
