"""The images of an OUTPUT that imports of other files labelled."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import pyarrow as pa

from jobs.imports.results import EARLIER, MEMORY
from jobs.output.manifest import Manifest
from jobs.output.views import connect, explain_query_errors, limit_memory

_ROWS_AT_ONCE = 1 << 16
# The newest row of an image says what readers see of it.
_OTHERS = """
SELECT image_id, max(num_detections)::INTEGER AS num_detections FROM latest_images
WHERE NOT starts_with(shard, $own) GROUP BY image_id
"""


def shard_prefix(source: str) -> str:
    """What the names of the shards of a file of detections start with."""
    return f"{source}#images-"


def images_of_other_files(
    output: str, runs: Sequence[Manifest], source: str, scratch: str
) -> Iterator[pa.RecordBatch]:
    """Yield rows (EARLIER) of the images whose newest labels are of other files than `source`.

    `runs` are those of OUTPUT that count. DuckDB spills to `scratch`.
    """
    if not runs:
        return
    with explain_query_errors(output), closing(connect(output, runs)) as connection:
        limit_memory(connection, MEMORY, scratch)
        found = connection.sql(_OTHERS, params={"own": shard_prefix(source)})
        for batch in found.to_arrow_reader(_ROWS_AT_ONCE):
            yield batch.cast(EARLIER)
