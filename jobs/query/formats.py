"""Write the answer to a query in any format, into a file or on stdout."""

import gzip
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import duckdb

from pipeline.storage.errors import InputError
from pipeline.storage.urls import mask, printable

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet")
# The format that the end of a name asks for. All but Parquet may be followed by `.gz`.
SUFFIXES = {
    **{f".{form}": form for form in FORMATS},
    ".ndjson": "jsonl",
    ".pq": "parquet",
}
PACKED = ".gz"
_ROWS = {
    "csv": "(FORMAT csv, HEADER)",
    "tsv": "(FORMAT csv, HEADER, DELIMITER '\t')",
    "json": "(FORMAT json, ARRAY true)",
    "jsonl": "(FORMAT json, ARRAY false)",
    "parquet": "(FORMAT parquet, COMPRESSION zstd)",
}
# JSON knows no such numbers, though DuckDB writes them. Strings are matched to be kept as they are.
_NOT_JSON = re.compile(rb'("(?:[^"\\]|\\.)*")|-?\b(?:NaN|Infinity)\b')


@dataclass(frozen=True)
class Form:
    """A format, and whether it is packed with gzip."""

    name: str
    packed: bool = False


def form_of(file: str, named: str | None = None) -> Form:
    """Return the format that `named` or else the name of a file asks for.

    InputError for an unknown one.
    """
    name = file.lower()
    packed = name.endswith(PACKED)
    suffix = Path(name.removesuffix(PACKED)).suffix
    form = SUFFIXES.get(suffix) if named in (None, "table") else named
    if named == "table" and form is None:  # earlier versions wrote CSV then
        form = "csv"
    if form is None:
        raise InputError(
            f"--out {mask(file)}: its name must end in .csv, .json or .parquet, or in .tsv, "
            ".jsonl or .ndjson; all but Parquet may be packed (.csv.gz). Or give --format"
        )
    if packed and form == "parquet":
        raise InputError(f"--out {mask(file)}: Parquet is packed already; leave {PACKED} out")
    return Form(form, packed)


def write_answer(
    connection: duckdb.DuckDBPyConnection,
    relation: duckdb.DuckDBPyRelation,
    form: Form,
    file: Path,
) -> int:
    """Write the rows of a relation to a local file. Returns their number."""
    connection.register("answer", relation)
    made = file.with_name(f"{file.name}.rows")
    try:
        copy = f"COPY answer TO $file {_ROWS[form.name]}"
        copied = connection.execute(copy, {"file": str(made)}).fetchall()
        if form.name in ("json", "jsonl"):
            _replace_numbers_unknown_to_json(made)
        if form.packed:
            with made.open("rb") as rows, gzip.open(file, "wb", compresslevel=6) as packed:
                shutil.copyfileobj(rows, packed)
        else:
            made.replace(file)
        return int(copied[0][0])
    finally:
        made.unlink(missing_ok=True)


def _replace_numbers_unknown_to_json(file: Path) -> None:
    """Replace NaN and Infinity by null, also in nested values."""
    valid = file.with_name(f"{file.name}.valid")
    try:
        with file.open("rb") as rows, valid.open("wb") as written:
            for row in rows:
                if b"NaN" in row or b"Infinity" in row:
                    row = _NOT_JSON.sub(lambda found: found[1] or b"null", row)
                written.write(row)
        valid.replace(file)
    finally:
        valid.unlink(missing_ok=True)


def print_file(file: Path, form: Form) -> None:
    """Print a file on stdout; control characters are spelled out on a terminal."""
    if form.name == "parquet" and sys.stdout.isatty():
        raise InputError("Parquet is no text: give --out FILE, or send it into one")
    if sys.stdout.isatty():
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                print(printable(line), end="")
        return
    with file.open("rb") as content:
        sys.stdout.flush()
        shutil.copyfileobj(content, sys.stdout.buffer)
