"""Read the images of a shard, one row per image. It runs in the reader's child."""

from collections.abc import Iterator
from itertools import islice

from pipeline.formats.files import read_files
from pipeline.formats.parquet import read_parquet
from pipeline.formats.tars import read_tar
from pipeline.isolation.child import Row
from pipeline.schema import Shard
from pipeline.storage import retries
from pipeline.storage.access import use_input_access

# The rows that readers make of archives, in their order. An interrupted run is resumed by positions
# of rows, so this number is raised when an archive gives other rows than before.
NUMBERING = 2
_ARCHIVES = {"tar": read_tar, "parquet": read_parquet}


def read_rows(shard: Shard, start: int) -> Iterator[Row]:
    """Yield the rows of the shard's images without the first `start`. It sets the access to stores.

    Raises StorageUnavailable if the store is unavailable.
    """
    use_input_access(shard.access)
    rows = (
        read_files(shard, start)
        if shard.kind == "files"
        else islice(_ARCHIVES[shard.kind](shard), start, None)
    )
    before = retries.repeated
    for row in rows:
        yield {**row, "retries": retries.repeated - before}
        before = retries.repeated
