"""How many images of a run of `label` are done, from what it has staged and published."""

import io
import logging
from collections import Counter

from jobs.output import paths
from jobs.output.catalog import load_catalog
from jobs.output.store import OutputStore
from jobs.serve.batches.records import RequestCounts, Validated
from pipeline.schema import DETECTED, OK
from pipeline.storage.errors import DamagedFile
from pipeline.storage.parquet import read_tables

log = logging.getLogger(__name__)


class Progress:
    """Counts the images in OUTPUT. Each staged block is read once."""

    def __init__(self, output: str):
        self._store = OutputStore(output)
        self._blocks: dict[str, Counter[str]] = {}

    def counts(self, validated: Validated) -> RequestCounts:
        """The counts of a batch while its run is under way."""
        done = self._published(validated.runs_before) + self._staged()
        completed = done[OK]
        failed = done.total() - completed + validated.bad
        known = completed + failed
        total = known if validated.images is None else validated.images + validated.bad
        return RequestCounts(total=max(total, known), completed=completed, failed=failed)

    def _published(self, before: str | None) -> Counter[str]:
        """Images by status, of the runs after `before`."""
        runs = load_catalog(self._store).committed_runs()
        counts: Counter[str] = Counter()
        for run in runs:
            if before is None or run["run_id"] > before:
                counts.update(run["images"])
        return counts

    def _staged(self) -> Counter[str]:
        names = set(filter(_is_block, self._store.names(paths.STAGING)))
        for name in names - self._blocks.keys():
            try:
                file = io.BytesIO(self._store.read(name))
                tables = read_tables(file, name, DETECTED, ["status"])
                self._blocks[name] = Counter(one for t in tables for one in t["status"].to_pylist())
            except FileNotFoundError:  # it is published meanwhile
                continue
            except DamagedFile as error:  # which the run finds too
                log.warning("%s", error)
                self._blocks[name] = Counter()
        return sum((self._blocks[name] for name in names & self._blocks.keys()), Counter())


def newest_run(output: str) -> str | None:
    """The id of the newest run of OUTPUT."""
    runs = load_catalog(OutputStore(output)).committed_runs()
    return max((run["run_id"] for run in runs), default=None)


def is_written(output: str) -> bool:
    """Whether another command writes OUTPUT, or has died a short time ago."""
    try:
        OutputStore(output).read(paths.LOCK)
    except FileNotFoundError:
        return False
    return True


def _is_block(name: str) -> bool:
    parts = name.split("/")
    return len(parts) > 2 and name.startswith(f"{paths.blocks(parts[1])}/")
