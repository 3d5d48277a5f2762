"""The names in a list that is a table in text: .csv, or .tsv with tabs, with a header."""

import csv
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.carry.columns import NO_CARRY
from pipeline.carry.values import MOST_LISTED_BYTES, values_of_json
from pipeline.plan.carry_choice import CarryChoice
from pipeline.plan.list_names import (
    HEAD_BYTES,
    LIST_COLUMNS,
    LONGEST_LINE,
    Said,
    address_names,
    encoding_of,
    file_name,
    log_choice,
)
from pipeline.storage.files import InputError, open_object
from pipeline.storage.urls import mask

log = logging.getLogger(__name__)

CSV_SUFFIXES = (".csv", ".tsv")
NO_COLUMN = (
    f"A table is a list where its first line names a column {LIST_COLUMNS[0]}, with commas between "
    "the columns, or tabs in a .tsv"
)
LONGEST_HEADER = 1 << 16  # characters
# What csv says of a quote that opens a cell and is not closed at the end of one.
_OPEN_QUOTE = ("unexpected end of data", "expected after")


def is_csv_list(fs: AbstractFileSystem, path: str) -> bool:
    """Whether the header of a file names a column of addresses."""
    with _opened(fs, path) as text:
        return bool(address_names(_cells(text.readline(LONGEST_HEADER), _delimiter(fs, path))))


def names_in_csv(
    fs: AbstractFileSystem, path: str, choice: CarryChoice | None = None
) -> Iterator[tuple[str, Said]]:
    """The names in a table, each with the values that `choice` carries along.

    An empty cell is null. A quoted cell may hold line breaks, and the rows with such cells are
    logged, because the quote may be none. Raises InputError for a cell that is too long, for one
    whose quote is not closed at its end, and for columns that are to be carried along and that the
    table lacks.
    """
    with _opened(fs, path) as text:
        rows = csv.reader(_lines(text, path), delimiter=_delimiter(fs, path), strict=True)
        begins, broken, first_broken = 1, 0, 0
        try:
            header = next(rows)
            columns = address_names(header)
            log_choice(path, columns)
            texts = pa.schema([(name, pa.string()) for name in dict.fromkeys(header)])
            carry = choice.choose_for_list(path, texts) if choice else NO_CARRY
            places = {name: header.index(name) for name in (columns[0], *carry.as_document())}
            begins = rows.line_num + 1
            for row in rows:
                if rows.line_num > begins:
                    broken, first_broken = broken + 1, first_broken or begins
                begins = rows.line_num + 1
                cells = {name: row[at] or None for name, at in places.items() if at < len(row)}
                if name := (cells.get(columns[0]) or "").strip():
                    yield name, values_of_json(cells, carry, MOST_LISTED_BYTES) if carry else None
        except csv.Error as error:
            place = f"line {begins} of the list {mask(path)}"
            if any(text in str(error) for text in _OPEN_QUOTE):
                raise InputError(
                    f'{place}: a quote (") opens a cell of this row, and is not closed at the end '
                    "of one. In CSV and TSV a cell that begins with a quote stands in quotes, and "
                    "its own quotes are doubled"
                ) from error
            raise InputError(f"{place}: {error}") from error
    if broken:
        log.warning(
            "%s: rows with line breaks in quoted cells: %d, the first in line %d. If a quote there "
            "is a part of a text, it hides the entries that follow: double it",
            *(mask(path), broken, first_broken),
        )


@contextmanager
def _opened(fs: AbstractFileSystem, path: str) -> Iterator[io.TextIOWrapper]:
    with open_object(fs, path) as file:
        encoding = encoding_of(file.read(HEAD_BYTES), path)
        file.seek(0)
        encoding = "utf-8-sig" if encoding == "utf-8" else encoding
        errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
        yield io.TextIOWrapper(file, encoding, errors, newline="")


def _lines(text: io.TextIOWrapper, path: str) -> Iterator[str]:
    """The lines of a table. Raises InputError for one that is too long."""
    while line := text.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise InputError(
                f"a line of the list {mask(path)} has more than {LONGEST_LINE:,} characters"
            )
        yield line


def _cells(line: str, delimiter: str) -> list[str]:
    """The cells of a line."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _delimiter(fs: AbstractFileSystem, path: str) -> str:
    return "\t" if file_name(fs, path).lower().endswith(".tsv") else ","
