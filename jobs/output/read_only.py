"""Keeps the SQL of users from changing anything: it reads OUTPUT, and files that it names."""

import duckdb

from pipeline.storage.errors import InputError

# DESCRIBE, SUMMARIZE, SHOW, FROM, VALUES and UNPIVOT are SELECTs.
READING = (duckdb.StatementType.SELECT,)
# A PIVOT is MULTI, and so are `COPY (PIVOT ...) TO` and `CREATE TABLE ... AS PIVOT ...`. EXPLAIN
# ANALYZE executes what it explains, a COPY too. In these, keywords say what is done.
MAYBE_READING = (duckdb.StatementType.MULTI, duckdb.StatementType.EXPLAIN)
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
    if kind in READING and "copy" not in _keywords(sql):
        return
    if kind not in (*READING, *MAYBE_READING):
        raise InputError(
            f"{kind.name} may change something, and query only reads: give a SELECT. For what else "
            "DuckDB does, write the answer into a file (--out), and open that"
        )
    if found := _keywords(sql) & _WRITING:
        word = sorted(found)[0]
        raise InputError(
            f"the keyword {word.upper()} may change something, and query only reads: give a "
            f'SELECT. As a name it takes quotes: "{word}"'
        )


def lock_down(connection: duckdb.DuckDBPyConnection) -> None:
    """Keep SQL from changing settings, which would, for example, write logs of DuckDB into files.

    Call it behind all that changes settings itself.
    """
    connection.execute("SET lock_configuration = true")


def _keywords(sql: str) -> set[str]:
    """The keywords of a statement in small letters, without those in texts and quoted names."""
    starts = [(start, kind) for start, kind in duckdb.tokenize(sql)]
    ends = [start for start, _ in starts[1:]] + [len(sql.encode())]
    text = sql.encode()
    return {
        text[start:end].decode(errors="replace").split("--")[0].split("/*")[0].strip().lower()
        for (start, kind), end in zip(starts, ends, strict=True)
        if kind == duckdb.token_type.keyword
    }
