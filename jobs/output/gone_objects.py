"""Objects that OUTPUT holds labels of and that are gone from their INPUT.

Each run over an INPUT records all objects that were gone when it was planned. A `label` that finds
nothing new makes no run, so it records them beside the newest run over its INPUT.
"""

from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.documents import damaged_document
from jobs.output.known_objects import read_plan
from jobs.output.manifest import Manifest
from jobs.output.run_documents import value_of_record, write_table
from pipeline.plan.shards import member_values
from pipeline.storage.errors import DamagedFile
from pipeline.storage.files import join, local_copy, open_location
from pipeline.storage.parquet import read_tables
from pipeline.storage.urls import identity

GONE = pa.schema([("uri", pa.string())])
AT_START = "gone.parquet"  # written with run.json; it is absent if nothing was gone
SINCE = "gone-since.parquet"  # written by a later `label` that found nothing new; replaces AT_START
# The views with the rows of all objects get other names, which the new views read.
_VIEWS = """
ALTER VIEW images RENAME TO images_with_gone;
ALTER VIEW detections RENAME TO detections_with_gone;
CREATE VIEW images AS SELECT * FROM images_with_gone ANTI JOIN gone_objects USING (uri);
CREATE VIEW detections AS
    SELECT * FROM detections_with_gone SEMI JOIN images USING (run, shard, image_id);
CREATE OR REPLACE VIEW latest AS
    SELECT * FROM detections_with_gone SEMI JOIN latest_images USING (run, shard, image_id);
"""


def hide_gone_objects(connection: duckdb.DuckDBPyConnection, output: str) -> int:
    """Leave the objects that are gone out of all views of a connection. Returns their number.

    `connection` comes from `views.connect`. Call this once, before any SQL of a user.
    """
    gone = gone_objects(output)
    if len(gone):
        connection.register("gone_rows", pa.table({"uri": gone}))
        connection.execute("CREATE TABLE gone_objects AS SELECT * FROM gone_rows")
        connection.unregister("gone_rows")
        connection.execute(_VIEWS)
    return len(gone)


def gone_objects(output: str) -> pa.Array:
    """The uris of the objects that are gone, as far as the runs of OUTPUT know; each once.

    An object counts as gone if the newest listing of its INPUT did not find it, and no later run
    over another INPUT labelled it. Raises DamagedOutput for a record that is damaged or missing.
    """
    runs = read_catalog(output).labelling_runs()
    newest = {run["input"]: run for run in runs}
    found = [pa.array([], pa.string())]
    for run in newest.values():
        gone = _gone_since(output, run)
        for later in runs:
            if len(gone) and later["run_id"] > run["run_id"]:
                gone = _without_objects(gone, output, later)
        found.append(gone)
    return pc.unique(pa.concat_arrays(found))


def record_gone_objects(output: str, runs: Sequence[Manifest], source: str, gone: pa.Array) -> None:
    """Record which objects are gone from the INPUT `source`, if that has changed.

    `runs` are the labelling runs of the catalog. This is for a command that finds nothing to label.
    """
    run = next((run for run in reversed(runs) if run["input"] == source), None)
    if run is None:
        return
    before = _gone_since(output, run)
    if len(before) != len(gone) or pc.any(pc.invert(pc.is_in(gone, before))).as_py():
        table = pa.table([gone], schema=GONE)
        write_table(join(output, paths.document(run["run_id"], SINCE)), table)


def _gone_since(output: str, run: Manifest) -> pa.Array:
    """The objects that were gone when the INPUT of a run was last listed."""
    name = paths.document(run["run_id"], SINCE)
    try:
        return _read_uris(output, name)
    except FileNotFoundError:
        pass  # no later command found other objects gone
    name = paths.document(run["run_id"], AT_START)
    try:
        return _read_uris(output, name)
    except FileNotFoundError as error:
        if _recorded_number(output, run["run_id"]):
            raise damaged_document(name) from error
        return pa.array([], pa.string())


def _read_uris(output: str, name: str) -> pa.Array:
    """Read a table of schema GONE. FileNotFoundError if there is none."""
    url = join(output, name)
    try:
        with local_copy(*open_location(url, "OUTPUT")) as file:
            tables = list(read_tables(file, url, GONE, GONE.names))
    except DamagedFile as error:
        raise damaged_document(name) from error
    return pa.concat_tables([GONE.empty_table(), *tables])["uri"].combine_chunks()


def _recorded_number(output: str, run_id: str) -> int:
    """The number of objects that run.json says were gone. 0 for imports, which list nothing."""
    return value_of_record(output, run_id, lambda record: int(record.get("gone") or 0), 0)


def _without_objects(gone: pa.Array, output: str, run: Manifest) -> pa.Array:
    """Those of `gone` that a run did not plan."""
    for table in read_plan(output, run["plan"], ["members"]):
        planned = [identity(uri) for uri in member_values(table, "uri").to_pylist()]
        gone = gone.filter(pc.invert(pc.is_in(gone, pa.array(planned, pa.string()))))
    return gone
