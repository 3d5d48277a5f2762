"""`detr-batch query`: DuckDB SQL over the committed tables of an OUTPUT, in any format."""

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import duckdb
from fsspec.implementations.local import LocalFileSystem

from jobs.output.gone import hide_gone_objects
from jobs.output.outside import refuse_within_output
from jobs.output.read_only import check_reads_only, lock_down
from jobs.output.views import CannotRead, connect, explain_query_errors
from pipeline.storage.files import InputError, explain_errors, open_location
from pipeline.storage.retries import retry
from pipeline.storage.urls import mask, printable

FILE_FORMATS = ("csv", "json", "parquet")
MATERIALIZED = "MATERIALIZED_RELATION"  # a type of DuckDB's relations
ROWS_SHOWN = 200  # most rows of a printed table
Answer = TypeVar("Answer")

EXAMPLES: tuple[tuple[str, str], ...] = (
    (
        "How many objects of each class",
        "SELECT label, count(*) AS objects FROM latest GROUP BY label ORDER BY objects DESC",
    ),
    (
        "The most confident boxes of one class",
        "SELECT image_id, round(score, 3) AS score, x_min, y_min, x_max, y_max FROM latest "
        "WHERE label = 'circle' AND score > 0.8 ORDER BY score DESC LIMIT 10",
    ),
    (
        "Images without any object",
        "SELECT image_id FROM latest_images WHERE status = 'ok' AND num_detections = 0",
    ),
    (
        "Why images failed",
        "SELECT status, count(*) AS images, any_value(error) AS sample FROM latest_images "
        "WHERE status <> 'ok' GROUP BY status ORDER BY images DESC",
    ),
    (
        "Classes that are seen together",
        "SELECT a.label, b.label AS other, count(DISTINCT a.image_id) AS images "
        "FROM latest AS a JOIN latest AS b USING (run, shard, image_id) WHERE a.label < b.label "
        "GROUP BY ALL ORDER BY images DESC LIMIT 10",
    ),
    (
        "The most crowded images",
        "SELECT image_id, num_detections FROM latest_images ORDER BY num_detections DESC LIMIT 10",
    ),
    (
        "Small objects, as COCO counts them (less than 32 x 32 pixels)",
        "SELECT label, count(*) FILTER ((x_max - x_min) * (y_max - y_min) < 1024) AS small, "
        "count(*) AS objects FROM latest GROUP BY label ORDER BY label",
    ),
    (
        "How scores are spread",
        "SELECT floor(score * 10) / 10 AS score, count(*) AS boxes FROM latest "
        "GROUP BY ALL ORDER BY score",
    ),
    (
        "What each run added",
        "SELECT run, count(*) AS images, count(*) FILTER (status <> 'ok') AS failed, "
        "sum(num_detections) AS boxes FROM images GROUP BY run ORDER BY run",
    ),
    (
        "Images whose labels a later run replaced",
        "SELECT uri, count(DISTINCT run) AS versions, max(run) AS newest FROM images "
        "GROUP BY uri HAVING versions > 1",
    ),
)


def answer_query(output: str, ask: Callable[[duckdb.DuckDBPyConnection], Answer]) -> Answer:
    """Return what `ask` computes from a connection to OUTPUT; ask again if a file has vanished.

    `compact` and `runs delete` remove files that a reader may be about to open. The views of a
    second connection name the files that replaced them. InputError with DuckDB's message for
    invalid SQL.
    """
    return run_with_second_attempt(partial(connect, output), ask, output)


def run_with_second_attempt(
    connect_to_data: Callable[[], duckdb.DuckDBPyConnection],
    ask: Callable[[duckdb.DuckDBPyConnection], Answer],
    place: str,
) -> Answer:
    """Do as `answer_query` does, with a connection that the caller opens to the data at `place`."""
    for again in (True, False):
        try:
            with explain_query_errors(place), connect_to_data() as connection:
                return ask(connection)
        except (FileNotFoundError, CannotRead):
            if not again:
                raise
    raise AssertionError("unreachable")


def query(
    output: str,
    sql: str,
    form: str = "table",
    file: str | None = None,
    overwrite: bool = False,
    present_only: bool = False,
) -> None:
    """Print the answer to one statement, or write it into a file at a path or URL.

    With `present_only` the views leave out objects that are gone from INPUT. InputError if the
    statement is invalid or does not only read, if the file is one of OUTPUT's, or if it exists and
    must not be overwritten.
    """
    if file is not None:
        refuse_within_output(output, file, "--out")
        _check_free(file, overwrite)

    def ask(connection: duckdb.DuckDBPyConnection) -> None:
        check_reads_only(connection, sql)
        if present_only:
            hide_gone_objects(connection, output)
        lock_down(connection)
        relation = connection.sql(sql)
        assert relation is not None
        if form == "table" and file is None:
            relation.show(max_rows=ROWS_SHOWN)  # DuckDB escapes control characters
            return
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "answer"
            _write_answer(connection, relation, "csv" if form == "table" else form, written)
            if file is None:
                _print_file(written, form)
            else:
                _put(written, file)

    answer_query(output, ask)


def _check_free(file: str, overwrite: bool) -> None:
    """Raise InputError if an answer may not be written to `file`."""
    fs, path = open_location(file, "--out")
    with explain_errors("--out", file):
        if fs.isdir(path):
            raise InputError(f"--out {mask(file)} is a folder: give a file")
        if fs.exists(path) and not overwrite:
            raise InputError(f"--out {mask(file)} exists: give another, or pass --overwrite")
        if isinstance(fs, LocalFileSystem) and not Path(path).parent.is_dir():
            raise InputError(f"--out {mask(file)}: its folder does not exist")


def _put(written: Path, file: str) -> None:
    """Put the whole answer at `file`, or nothing."""
    fs, path = open_location(file, "--out")
    with explain_errors("--out", file):
        if not isinstance(fs, LocalFileSystem):
            retry(fs.put_file, str(written), path)
            return
        beside = Path(path).with_name(f".{Path(path).name}.{uuid.uuid4().hex}")
        try:
            shutil.copyfile(written, beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def form_of(file: str) -> str:
    """Return the format that a file's name asks for; InputError for an unknown one."""
    form = Path(file).suffix.lower().lstrip(".")
    if form not in FILE_FORMATS:
        raise InputError(f"--out {mask(file)}: its name must end in .csv, .json or .parquet")
    return form


def _write_answer(
    connection: duckdb.DuckDBPyConnection, relation: Any, form: str, written: Path
) -> None:
    if form == "parquet":
        relation.write_parquet(str(written), compression="zstd")
    elif form == "csv":
        relation.write_csv(str(written), header=True)
    else:
        if relation.type == MATERIALIZED:  # of PIVOT and EXPLAIN, which no view can hold
            relation = connection.from_arrow(relation.to_arrow_table())
        names = (_quoted(name) for name in relation.columns)
        columns = zip(names, relation.types, strict=True)
        finite = relation.project(", ".join(f"{_finite(n, t)} AS {n}" for n, t in columns))
        finite.create_view("answer")
        connection.execute("COPY answer TO ? (FORMAT json, ARRAY true)", [str(written)])


def _finite(value: str, kind: Any, depth: int = 0) -> str:
    """SQL for a value without NaN and infinite numbers, which JSON does not have: they are null."""
    if kind.id in ("float", "double"):
        return f"CASE WHEN isfinite({value}) THEN {value} END"
    if kind.id in ("list", "array"):
        name, child = f"x{depth}", dict(kind.children)["child"]
        return f"list_transform({value}, lambda {name}: {_finite(name, child, depth + 1)})"
    if kind.id == "struct":
        fields = ", ".join(
            f"{_quoted(name)} := {_finite(f'{value}.{_quoted(name)}', child, depth)}"
            for name, child in kind.children
        )
        return f"CASE WHEN {value} IS NOT NULL THEN struct_pack({fields}) END"
    return value


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _print_file(written: Path, form: str) -> None:
    """Print a file on stdout; control characters are spelled out on a terminal."""
    if form == "parquet" and sys.stdout.isatty():
        raise InputError("Parquet is no text: give --out FILE, or send it into one")
    if sys.stdout.isatty():
        with written.open(encoding="utf-8") as lines:
            for line in lines:
                print(printable(line), end="")
        return
    with written.open("rb") as content:
        sys.stdout.flush()
        shutil.copyfileobj(content, sys.stdout.buffer)


def examples() -> str:
    """Return the worked examples as text for people."""
    return "\n\n".join(f"-- {title}\n{sql}" for title, sql in EXAMPLES)
