"""`detr-batch query`: DuckDB SQL over the committed tables of an OUTPUT."""

import re

import duckdb
import pyarrow as pa

from pipeline.publish import committed_runs
from pipeline.storage import InputError, join, open_location

VIEWS = ("images", "detections")


def connect(output: str) -> duckdb.DuckDBPyConnection:
    """A connection with the views `images` and `detections`, of committed runs alone.

    InputError where OUTPUT has none.
    """
    runs = committed_runs(output)
    if not runs:
        raise InputError(f"{output} holds no finished run: `detr-batch label` makes one")
    connection = duckdb.connect()
    fs, _ = open_location(output, "OUTPUT")
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    if protocol not in ("file", "local"):
        connection.register_filesystem(fs)
    for view in VIEWS:
        files = [
            _literal(join(output, file["path"]))
            for run in runs
            for file in run["files"]
            if file["path"].startswith(f"{view}/")
        ]
        relation = connection.read_parquet(files, hive_partitioning=True)
        relation.create_view(view)
    return connection


def _literal(path: str) -> str:
    """`path` for DuckDB, which takes brackets, stars and question marks for patterns."""
    return re.sub(r"[\[*?]", lambda sign: f"[{sign[0]}]", path)


def query(output: str, sql: str) -> pa.Table:
    """The answer to one statement; InputError with DuckDB's message where it has a mistake."""
    connection = connect(output)
    try:
        relation = connection.sql(sql)
        answer = None if relation is None else relation.to_arrow_table()
    except duckdb.Error as error:
        raise InputError(str(error)) from error
    if answer is None:
        raise InputError("the statement returns nothing: give a SELECT")
    return answer
