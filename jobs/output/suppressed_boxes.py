"""The views of an OUTPUT without the boxes that others suppress."""

from collections.abc import Iterator

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.output.views import limit_memory
from pipeline.schema import DETECTIONS
from pipeline.stages.box_rules import BoxRules, suppressed_boxes

MEMORY = "256MB"  # memory limit of the sort by image, which spills to disk beyond it
ROWS_AT_ONCE = 1 << 16
_IMAGE = ["run", "shard", "image_id"]  # columns that name an image
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_ROWS = f"""
SELECT run, shard, image_id, detection, label_id, {", ".join(_CORNERS)} FROM detections
ORDER BY run, shard, image_id, detection
"""
_SUPPRESSED = pa.schema([*((name, pa.string()) for name in _IMAGE), DETECTIONS.field("detection")])
# The views with all boxes get other names, which the new views read. `latest_images` and `latest`
# read the new views. The best box of an image is never suppressed, so that its max_score stays.
# A carried column of `images` may be called `suppressed`.
_VIEWS = """
CREATE TABLE suppressed_of_images AS
    SELECT run, shard, image_id, count(*)::INTEGER AS suppressed FROM suppressed GROUP BY ALL;
ALTER VIEW images RENAME TO images_of_all_boxes;
ALTER VIEW detections RENAME TO all_detections;
CREATE VIEW detections AS
    SELECT * FROM all_detections ANTI JOIN suppressed USING (run, shard, image_id, detection);
CREATE VIEW images AS
    SELECT every.* REPLACE (num_detections - coalesce(counts.suppressed, 0) AS num_detections)
    FROM images_of_all_boxes AS every
        LEFT JOIN suppressed_of_images AS counts USING (run, shard, image_id);
"""


def hide_suppressed_boxes(
    connection: duckdb.DuckDBPyConnection, rules: BoxRules, scratch: str
) -> int:
    """Leave the boxes that others suppress out of all views of a connection. Returns their number.

    Boxes are compared within the images of each run, as `label` compares them. Images of one name
    in one archive, which earlier versions wrote, keep all their boxes: which are of which image is
    not known.

    `connection` comes from `views.connect`. Call this once, before `hide_gone_objects` and before
    any SQL of a user. DuckDB sorts in the folder `scratch`, which must stay until it is closed.
    """
    limit_memory(connection, MEMORY, scratch)
    found = 0
    with connection.cursor() as writing:  # rows are read through `connection` meanwhile
        writing.register("nothing", _SUPPRESSED.empty_table())
        writing.execute("CREATE TABLE suppressed AS SELECT * FROM nothing")
        for images in _whole_images(connection):
            rows = _suppressed_rows(images, rules)
            found += len(rows)
            if len(rows):
                writing.register("rows", rows)
                writing.execute("INSERT INTO suppressed SELECT * FROM rows")
                writing.unregister("rows")
    connection.execute("RESET memory_limit")
    connection.execute(_VIEWS)
    return found


def _whole_images(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
    """Yield the boxes of all images, of some at a time, by image and rank."""
    rest: pa.Table | None = None
    for batch in connection.sql(_ROWS).to_arrow_reader(ROWS_AT_ONCE):
        table = pa.Table.from_batches([batch])
        table = table if rest is None else pa.concat_tables([rest, table]).combine_chunks()
        last = int(_starts(table)[-1]) if len(table) else 0
        if last:
            yield table.slice(0, last)
        rest = table.slice(last)
    if rest is not None and len(rest):
        yield rest


def _starts(table: pa.Table) -> npt.NDArray[np.intp]:
    """The positions of the first rows of all images; rows of one image are neighbours."""
    is_first = np.zeros(len(table), bool)
    is_first[:1] = True
    for name in _IMAGE:
        column = table[name].combine_chunks()
        is_first[1:] |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(is_first)


def _suppressed_rows(images: pa.Table, rules: BoxRules) -> pa.Table:
    """The rows of `images`, a table of whole images, that others suppress."""
    starts = _starts(images)
    lengths = np.diff(starts, append=len(images))
    labels = pc.fill_null(images["label_id"], -1).to_numpy()
    corners = [images[name].to_numpy().astype(np.float32) for name in _CORNERS]
    places = suppressed_boxes(rules, lengths, labels, np.stack(corners, axis=1))
    ranks = images["detection"].to_numpy()
    image = np.repeat(np.arange(len(starts)), lengths)
    repeated = image[1:][(ranks[1:] == ranks[:-1]) & (image[1:] == image[:-1])]
    places = places[~np.isin(image[places], repeated)]
    return images.select(_SUPPRESSED.names).take(pa.array(places)).cast(_SUPPRESSED)
