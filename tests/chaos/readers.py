"""A reader that looks at an OUTPUT again and again while writers are disturbed."""

import threading
from collections import Counter
from types import TracebackType
from typing import Self

from jobs.output.errors import DamagedOutput
from tests.chaos.compare import digest, read_tables

PAUSE_SECONDS = 0.5


class Reader:
    """Notes what the views `latest` show, from the start of the `with` block to its end."""

    def __init__(self, output: str):
        self.output = output
        self.seen: Counter[str] = Counter()  # digests of what was read
        self.failed = 0  # reads that ended in an error, as when files were removed under them
        self.damaged: list[str] = []  # what no reader may ever be told of an OUTPUT that is whole
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="reader")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            try:
                self.seen[digest(read_tables(self.output, latest=True))] += 1
            except (DamagedOutput, AssertionError) as error:
                self.damaged.append(str(error))
            except Exception:  # DuckDB and stores raise many types
                self.failed += 1
