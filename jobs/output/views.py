"""DuckDB views of an OUTPUT. Every command over finished tables reads through them.

- `images`, `detections`: all rows of committed runs, with the column `run`
- `latest_images`: for each object (`uri`) the rows of the newest run that could fetch it, or of the
  newest run if none could
- `latest`: the boxes of `latest_images`
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import reduce

import duckdb
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from jobs.output.carried import carried_as_sql, common_carry, quoted
from jobs.output.catalog import committed_runs
from jobs.output.documents import FORMAT, damaged_document
from jobs.output.files_in_errors import damaged_file, named_file
from jobs.output.manifest import Manifest, carry_of_run, files_of_table
from jobs.output.paths import TABLES
from jobs.output.read_only import URL_IN_SQL, register_store
from jobs.output.user_errors import no_finished_run
from pipeline.carry.columns import NO_CARRY, Carry
from pipeline.schema import DETECTIONS, IMAGES, NOT_FETCHED
from pipeline.storage.errors import CommandFailed
from pipeline.storage.files import InputError, join, open_location
from pipeline.storage.limits import reached_limit
from pipeline.storage.protocols import protocol_of
from pipeline.storage.urls import mask

SCHEMAS = {"images": IMAGES, "detections": DETECTIONS}
VIEWS = ("latest", "latest_images", *TABLES)
# Whether a box can be drawn and scored, in SQL: tables of others, and edited ones, have others too.
IS_USABLE = """coalesce(isfinite(score) AND isfinite(x_min) AND isfinite(y_min)
    AND isfinite(x_max) AND isfinite(y_max) AND x_min <= x_max AND y_min <= y_max, false)"""
_NO_COLUMN = re.compile(r'.*Referenced column "(.*)" not found in FROM clause!')
_NO_TABLE = re.compile(r"Table with name .* does not exist!")
_NO_ROOM = "failed to offload data block"  # in DuckDB's words: the disk is full, or nearly
_NO_FILE = "No files found that match the pattern"  # in DuckDB's words, of a file in a query
_NAMES_FILE = re.compile(r"""['"][^'"]*[./][^'"]*['"]""")
_RUN = "regexp_extract(filename, '/run=([^/]+)/[^/]+$', 1)"
_LATEST = f"""
CREATE VIEW latest_images AS
    SELECT * FROM images SEMI JOIN (
        SELECT uri, coalesce(max(run) FILTER (status NOT IN {NOT_FETCHED}), max(run)) AS run
        FROM images GROUP BY uri
    ) AS newest USING (uri, run);
CREATE VIEW latest AS
    SELECT * FROM detections SEMI JOIN latest_images USING (run, shard, image_id);
"""


def finished_runs(output: str) -> list[Manifest]:
    """Manifests of the runs that count, oldest first. Raises InputError if OUTPUT has none."""
    runs = committed_runs(output)
    if not runs:
        raise no_finished_run(output)
    return runs


def connect(
    output: str,
    runs: Sequence[Manifest] | None = None,
    carrying: Sequence[Manifest] | None = None,
) -> duckdb.DuckDBPyConnection:
    """A connection with the views over `runs`, given by their manifests (None: all that count).

    The views have the carried columns of the runs `carrying` (None: of all `runs`), in the types
    that these have; of other runs they may be NULL. Raises InputError if OUTPUT has no run that
    counts.
    """
    connection = duckdb.connect()
    chosen = finished_runs(output) if runs is None else runs
    add_views(connection, output, chosen, carrying=carrying)
    return connection


def add_views(
    connection: duckdb.DuckDBPyConnection,
    output: str,
    runs: Sequence[Manifest],
    schema: str = "main",
    carrying: Sequence[Manifest] | None = None,
) -> None:
    """Create the views over `runs` of OUTPUT. Each OUTPUT of a connection has its own `schema`.

    `carrying` is as in `connect`.
    """
    connection.execute("SET enable_progress_bar = false")  # DuckDB would draw it on stdout
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}; USE {schema}")
    fs = register_store(connection, output)
    if isinstance(fs, LocalFileSystem):
        _refuse_special_files(output, runs)
    if protocol_of(output) in (
        "s3",
        "s3a",
    ):  # DuckDB asks for the size of a file each time that it opens one
        fs.invalidate_cache()
        paths_of_files = (join(output, file["path"]) for run in runs for file in run["files"])
        for folder in sorted({path.rpartition("/")[0] for path in paths_of_files}):
            with suppress(FileNotFoundError):  # which reading the file says
                fs.ls(folder)
    with_files = [run for run in runs if run["files"]]
    carrying = with_files if carrying is None else carrying
    for table in TABLES:
        carry = common_carry(carrying) if table == "images" else NO_CARRY
        parts = []
        for some in _alike(with_files, table):
            is_carrying = any(run in carrying for run in some)
            columns = _columns(some[0], table, carry, is_carrying)
            parts.append(_read(connection, output, table, some).project(columns))
        if not parts:  # no run has a file
            empty = SCHEMAS[table].empty_table().append_column("run", pa.array([], pa.string()))
            parts = [connection.from_arrow(empty)]
        reduce(duckdb.DuckDBPyRelation.union, parts).create_view(table)
    connection.execute(_LATEST)
    connection.execute("USE main")


def _alike(runs: Sequence[Manifest], table: str) -> list[list[Manifest]]:
    """The runs whose files of a table have the same columns, in groups."""
    groups: dict[object, list[Manifest]] = {}
    for run in runs:
        carried = tuple(run.get("carried", {}).items()) if table == "images" else ()
        groups.setdefault((run["format"] < FORMAT, carried), []).append(run)
    return list(groups.values())


def _columns(run: Manifest, table: str, carry: Carry, is_carrying: bool) -> str:
    """What the view takes from the files of a run: those of `carry` that they lack are NULL.

    Unless it `is_carrying`, the types of `carry` need not hold its values, and all are NULL.
    """
    own = carry_of_run(run) if table == "images" else NO_CARRY
    left_out = ", ".join(["filename", *(quoted(column.name) for column in own.columns)])
    run_id = [f"{_RUN} AS run_id"] if run["format"] < FORMAT else []
    carried = carried_as_sql(own if is_carrying else NO_CARRY, carry)
    return ", ".join([f"* EXCLUDE ({left_out})", *run_id, *carried, f"{_RUN} AS run"])


def _refuse_special_files(output: str, runs: Sequence[Manifest]) -> None:
    """Raise DamagedOutput for a pipe or device in place of a table: DuckDB would wait for it."""
    for name in (file["path"] for run in runs for file in run["files"]):
        _, path = open_location(join(output, name), "OUTPUT")
        if os.path.exists(path) and not os.path.isfile(path):
            raise damaged_document(name)


def _read(
    connection: duckdb.DuckDBPyConnection, output: str, table: str, runs: Sequence[Manifest]
) -> duckdb.DuckDBPyRelation:
    """The files of a table of some runs, as one relation."""
    files = [
        _literal(join(output, file["path"])) for run in runs for file in files_of_table(run, table)
    ]
    # Hive partitions are off, because folders above OUTPUT may have names such as `label=...`.
    relation = connection.read_parquet(files, hive_partitioning=False, filename=True)
    carried = carry_of_run(runs[0]).columns if table == "images" else ()
    expected = {"image_id", "shard", *(column.name for column in carried)}
    if not expected <= set(relation.columns):  # DuckDB takes them from the first file
        raise damaged_document(files_of_table(runs[0], table)[0]["path"])
    return relation


def limit_memory(connection: duckdb.DuckDBPyConnection, memory: str, scratch: str) -> None:
    """Limit DuckDB to `memory` ("1GB"). It writes the rest to files below `scratch`."""
    connection.execute("SET memory_limit = $memory", {"memory": memory})
    connection.execute("SET temp_directory = $folder", {"folder": scratch})


class CannotRead(RuntimeError):
    """The tables of an OUTPUT cannot be read, temporarily or permanently."""


@contextmanager
def explain_query_errors(*outputs: str, sql: str = "") -> Iterator[None]:
    """Convert errors of DuckDB over `outputs`: InputError for a mistake of the user's in SQL.

    `sql` is SQL of the user's, which may name files. CannotRead names a file of an OUTPUT that is
    missing or damaged. CommandFailed says that a limit of this machine is reached.
    """
    try:
        yield
    except duckdb.Error as error:
        limit = reached_limit(error) if isinstance(error, duckdb.IOException) else None
        if isinstance(error, duckdb.OutOfMemoryException) and _NO_ROOM in str(error):
            limit = "no room is left for temporary files: make room, or set TMPDIR to a folder"
        if limit is not None:
            raise CommandFailed(f"{limit}, then run the same command again") from error
        raise _explained(error, outputs, sql) from error


def _explained(error: duckdb.Error, outputs: Sequence[str], sql: str) -> InputError | CannotRead:
    # DuckDB has one class of errors for mistakes and for damaged Parquet, whose file it may name.
    text = str(error)
    for url in URL_IN_SQL.findall(sql):
        text = mask(text, url)
    # An error from a Python file system has many lines.
    last = mask((text.strip().splitlines() or [type(error).__name__])[-1])
    for output in outputs:
        if name := named_file(text, output):
            return _unreadable_file(output, name, last)
    mistakes = duckdb.ProgrammingError | duckdb.DataError | duckdb.NotSupportedError
    if isinstance(error, duckdb.CatalogException) and (found := _NO_TABLE.search(text)):
        return InputError(f"{found[0]} (there are {', '.join(VIEWS)})")
    if isinstance(error, mistakes) or _NO_FILE in text:
        return InputError(_with_hint(text, sql))
    if not isinstance(error, duckdb.OutOfMemoryException):
        of_file_system = "Traceback" in text  # of Python, which then reads a store
        for output in outputs:
            if damaged := damaged_file(output, whole=not of_file_system):
                return _unreadable_file(output, damaged, last)
        if _NAMES_FILE.search(sql):
            return InputError(f"a file that the SQL names cannot be read: {last}")
    return CannotRead(f"{' or '.join(map(mask, outputs))} cannot be read: {last}")


def _with_hint(text: str, sql: str) -> str:
    """The words of DuckDB; in SQL a text in double quotes is the name of a column."""
    found = _NO_COLUMN.match(text)
    if found is None or f'"{found[1]}"' not in sql:
        return text
    return f"{found[0]} A text stands in single quotes: '{found[1]}'{text[found.end() :]}"


def _unreadable_file(output: str, name: str, reason: str) -> CannotRead:
    return CannotRead(
        f"{name} of OUTPUT {mask(output)} cannot be read: {reason} (put back what was there, from "
        "a backup or an older version of the object)"
    )


def _literal(path: str) -> str:
    """Escape `path` for DuckDB, which reads brackets, stars and question marks as patterns."""
    return re.sub(r"[\[*?]", lambda sign: f"[{sign[0]}]", path)
