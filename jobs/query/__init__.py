"""`detr-batch query`: DuckDB SQL over the committed tables of an OUTPUT, in any format."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import duckdb
from fsspec.implementations.local import LocalFileSystem

from jobs.accounting.plurals import counted
from jobs.output.gone_objects import hide_gone_objects
from jobs.output.protected_files import refuse_within_output
from jobs.output.read_only import check_reads_only, lock_down
from jobs.output.suppressed_boxes import hide_suppressed_boxes
from jobs.output.views import CannotRead, connect, explain_query_errors
from jobs.query.examples import EXAMPLES as EXAMPLES
from jobs.query.examples import examples as examples
from jobs.query.formats import Form as Form
from jobs.query.formats import form_of as form_of
from jobs.query.formats import print_file, write_answer
from pipeline.stages.box_rules import BoxRules
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import InputError, open_location
from pipeline.storage.retries import retry
from pipeline.storage.unfinished import hidden_place, put_file_in_place
from pipeline.storage.urls import mask

ROWS_SHOWN = 200  # most rows of a printed table
Answer = TypeVar("Answer")


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
    *outputs: str,
    sql: str = "",
) -> Answer:
    """Do as `answer_query` does, with a connection that the caller opens to `outputs`.

    `sql` is SQL of the user's, which may name files.
    """
    for again in (True, False):
        try:
            with explain_query_errors(*outputs, sql=sql), connect_to_data() as connection:
                return ask(connection)
        except (FileNotFoundError, CannotRead):
            if not again:
                raise
    raise AssertionError("unreachable")


def query(
    output: str,
    sql: str,
    form: Form | None = None,
    file: str | None = None,
    overwrite: bool = False,
    present_only: bool = False,
    rules: BoxRules | None = None,
) -> None:
    """Print the answer to one statement, or write it into a file at a path or URL.

    Without `form` it is printed as a table. With `present_only` the views leave out objects that
    are gone from INPUT, and with `rules` boxes that others suppress. InputError if the statement is
    invalid or does not only read, if the file is one of OUTPUT's, or if it exists and must not be
    overwritten.
    """
    if file is not None:
        refuse_within_output(output, file, "--out")
        _check_free(file, overwrite)

    def ask(connection: duckdb.DuckDBPyConnection) -> None:
        check_reads_only(connection, sql)
        with tempfile.TemporaryDirectory(prefix="detr-batch-") as folder:
            if rules is not None and rules.suppress:
                hidden = hide_suppressed_boxes(connection, rules, folder)
                print(f"left out: {counted(hidden, 'box')} that others suppress", file=sys.stderr)
            if present_only:
                gone = hide_gone_objects(connection, output)
                print(f"left out: {counted(gone, 'object')} gone from INPUT", file=sys.stderr)
            lock_down(connection, sql, folder)
            relation = connection.sql(sql)
            assert relation is not None
            if form is None:
                relation.show(max_rows=ROWS_SHOWN)  # DuckDB escapes control characters
                return
            written = Path(folder) / "answer"
            rows = write_answer(connection, relation, form, written)
            if file is None:
                print_file(written, form)
            else:
                _put(written, file, overwrite)
                print(f"{rows} row{'s' * (rows != 1)} in {mask(file)}", file=sys.stderr)

    run_with_second_attempt(partial(connect, output), ask, output, sql=sql)


def _check_free(file: str, overwrite: bool) -> None:
    """Raise InputError if an answer may not be written to `file`."""
    fs, path = open_location(file, "--out")
    with explain_errors("--out", file):
        is_local = isinstance(fs, LocalFileSystem)
        if fs.isdir(path):
            raise InputError(f"--out {mask(file)} is a folder: give a file")
        if is_local and fs.exists(path) and not os.path.isfile(path):
            raise InputError(f"--out {mask(file)} is no regular file: stdout is written without it")
        if fs.exists(path) and not overwrite:
            raise _exists(file)
        if is_local and not Path(path).parent.is_dir():
            raise InputError(f"--out {mask(file)}: its folder does not exist; make it first")


def _exists(file: str) -> InputError:
    return InputError(f"--out {mask(file)} exists: give another, or pass --overwrite")


def _put(written: Path, file: str, overwrite: bool) -> None:
    """Put the whole answer at `file`, or nothing. InputError if a file has appeared there."""
    fs, path = open_location(file, "--out")
    with explain_errors("--out", file):
        if not isinstance(fs, LocalFileSystem):
            retry(fs.put_file, str(written), path)
            return
        place = Path(os.path.realpath(path))  # a link stays, and leads to the answer
        try:
            with hidden_place(place, Path.touch) as beside:
                shutil.copyfile(written, beside)
                put_file_in_place(beside, place, overwrite)
        except FileExistsError:
            raise _exists(file) from None
        except OSError as error:  # it names hidden files, or none
            raise OSError(error.errno, error.strerror) from error
