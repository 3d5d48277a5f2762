"""Keeps the SQL of users from changing anything: it reads OUTPUT, and files that it names."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import duckdb
from fsspec import AbstractFileSystem

from pipeline.storage.errors import InputError
from pipeline.storage.files import open_self_retrying
from pipeline.storage.protocols import PROTOCOLS, is_local, protocol_of

# DESCRIBE, SUMMARIZE, SHOW, FROM, VALUES and UNPIVOT are SELECTs.
READING = (duckdb.StatementType.SELECT,)
# A PIVOT is MULTI, and so are `COPY (PIVOT ...) TO` and `CREATE TABLE ... AS PIVOT ...`. EXPLAIN
# ANALYZE executes what it explains, a COPY too. In these, keywords say what is done.
MAYBE_READING = (duckdb.StatementType.MULTI, duckdb.StatementType.EXPLAIN)
# The queries in the tree of a SELECT that only read. `WITH x AS (COPY ...)` is a SELECT too, with a
# COPY_QUERY_NODE in its tree.
_READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
# Functions that stand for a table and only read. Others take SQL as text, which nobody has checked
# (`json_execute_serialized_sql`, `query`), or change how DuckDB works.
_READING_FUNCTIONS = frozenset(
    "read_parquet parquet_scan parquet_metadata parquet_full_metadata parquet_file_metadata "
    "parquet_kv_metadata parquet_schema parquet_bloom_probe read_csv read_csv_auto sniff_csv "
    "read_json read_json_auto read_json_objects read_json_objects_auto read_ndjson "
    "read_ndjson_auto read_ndjson_objects read_text read_blob read_duckdb glob json_each "
    "json_tree range generate_series unnest repeat repeat_row summary histogram histogram_values "
    "duckdb_columns duckdb_functions duckdb_settings duckdb_tables duckdb_types duckdb_views "
    "duckdb_keywords pg_timezone_names icu_calendar_names pragma_table_info pragma_version".split()
)
_LOCK = """
SET autoinstall_known_extensions = false;
SET autoload_known_extensions = false;
SET allow_persistent_secrets = false;
SET python_enable_replacements = false;
SET allowed_directories = {readable};
SET enable_external_access = false;
SET lock_configuration = true;
"""
_TABLE_FUNCTIONS = """
SELECT DISTINCT function_name FROM duckdb_functions()
WHERE function_type IN ('table', 'table_macro', 'pragma')
"""
URL_IN_SQL = re.compile(r"""[A-Za-z][A-Za-z0-9+.\-]*://[^'"\s]*""")
_WRITING = frozenset(
    "alter attach call checkpoint copy create delete detach drop execute export import insert "
    "install load merge pragma prepare truncate update vacuum".split()
)


def check_reads_only(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise InputError unless `sql` is one statement that reads, whatever it reads."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise InputError(f"{len(statements)} statements: give one, a SELECT")
    (statement,) = statements
    kind = statement.type
    if kind in READING:
        _check_tree(connection, statement.query)
        return
    if kind not in MAYBE_READING:
        raise InputError(
            f"{kind.name} may change something, and query only reads: give a SELECT. For what else "
            "DuckDB does, write the answer into a file (--out), and open that"
        )
    tokens = list(_tokens(sql))
    keywords = {word for kind, word in tokens if kind == duckdb.token_type.keyword}
    if found := keywords & _WRITING:
        word = sorted(found)[0]
        raise InputError(
            f"the keyword {word.upper()} may change something, and query only reads: give a "
            f'SELECT. As a name it takes quotes: "{word}"'
        )
    known = connection.execute(_TABLE_FUNCTIONS).fetchall()
    called = {word for (_, word), (_, after) in pairwise(tokens) if after.startswith("(")}
    for (name,) in known:
        if name in called:
            _check_function(name)


def _check_tree(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise InputError unless every query in the tree of a SELECT reads. DuckDB makes the tree."""
    # All rows are fetched: DuckDB refuses much while a result is left open.
    rows = connection.execute("SELECT json_serialize_sql($sql::VARCHAR)", {"sql": sql}).fetchall()
    tree = json.loads(rows[0][0])
    if tree["error"]:
        raise InputError(f"{tree['error_message']}: give a SELECT")
    for node in _nodes(tree["statements"]):
        kind = str(node.get("type"))
        if kind.endswith("_NODE") and kind not in _READING_NODES:
            raise InputError(
                f"{kind.partition('_')[0]} may change something, and query only reads: leave it out"
            )
        if kind == "TABLE_FUNCTION":
            function = node.get("function") or {}
            _check_function(str(function.get("function_name", "")))


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _check_function(name: str) -> None:
    """Raise InputError for a function that stands for a table, unless it is known to read."""
    if name.lower() not in _READING_FUNCTIONS:
        raise InputError(
            f"the function {name} is none of those that are known to read: leave it out"
        )


class ReadOnlyFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system that opens files for reading only. DuckDB gets no other one.

    fsspec's own methods that delete, move or create raise NotImplementedError or do nothing.
    """

    cachable = False

    def __init__(self, fs: AbstractFileSystem):
        super().__init__()
        self.protocol = fs.protocol
        self._files = fs

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode not in ("r", "rb"):
            raise PermissionError(f"{path} is only read, and may not be opened with mode {mode}")
        return self._files.open(path, mode, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return self._files.ls(path, detail=detail, **options)

    def info(self, path: str, **options: Any) -> Any:
        return self._files.info(path, **options)

    def glob(self, path: str, **options: Any) -> Any:
        return self._files.glob(path, **options)

    def exists(self, path: str, **options: Any) -> bool:
        return bool(self._files.exists(path, **options))

    def isfile(self, path: str) -> bool:
        return bool(self._files.isfile(path))

    def isdir(self, path: str) -> bool:
        return bool(self._files.isdir(path))

    def modified(self, path: str) -> Any:
        try:
            return self._files.modified(path)
        except NotImplementedError:  # web servers need not say it
            return datetime.fromtimestamp(0, UTC)


def register_store(connection: duckdb.DuckDBPyConnection, url: str) -> AbstractFileSystem:
    """Let a connection read the store of `url`, unless it is local. Returns its file system."""
    fs = open_self_retrying(url)
    name = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    if not is_local(url) and not connection.filesystem_is_registered(name):
        connection.register_filesystem(ReadOnlyFiles(fs))
    return fs


def lock_down(connection: duckdb.DuckDBPyConnection, sql: str, scratch: str) -> None:
    """Keep SQL from changing settings, which would, for example, write logs of DuckDB into files.

    The files that `sql` names can be read, also in stores. No extension is installed or loaded, and
    a misspelt table is no variable of this program. What does not fit into memory goes to the
    folder `scratch`. Call it behind all that changes settings itself.
    """
    found = {protocol_of(url): url for url in URL_IN_SQL.findall(sql)}
    stores = {name: url for name, url in found.items() if name in PROTOCOLS}
    for url in stores.values():
        register_store(connection, url)
    ((folder,),) = connection.execute("SELECT current_setting('temp_directory')").fetchall()
    if folder != scratch:  # DuckDB refuses to set a folder again that it has used
        connection.execute("SET temp_directory = $folder", {"folder": scratch})
    readable = ["/", *(f"{name}://" for name in PROTOCOLS if name != "file")]
    connection.execute(_LOCK.format(readable=readable))


def _tokens(sql: str) -> Iterator[tuple[duckdb.token_type, str]]:
    """The kinds and texts of a statement's tokens, in small letters, names without quotes."""
    text = sql.encode()
    starts = [(start, kind) for start, kind in duckdb.tokenize(sql)]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    for (start, kind), end in zip(starts, ends, strict=True):
        if kind != duckdb.token_type.comment:
            word = text[start:end].decode(errors="replace")
            if kind != duckdb.token_type.string_const:
                word = word.split("--")[0].split("/*")[0]
            yield kind, word.strip().strip('"').lower()
