"""The names in a list, read as a stream: lines of a text, or a column of a Parquet file."""

import io
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.carry.arrow_types import is_text, value_type
from pipeline.carry.columns import NO_CARRY, Carry
from pipeline.carry.values import MOST_LISTED_BYTES, PlainRow, bounded, converted
from pipeline.formats.parquet import open_parquet
from pipeline.formats.parquet_columns import Columns, NoImageColumn
from pipeline.plan.carry_choice import CarryChoice
from pipeline.storage.files import InputError, open_object
from pipeline.storage.retries import is_transient
from pipeline.storage.urls import mask

log = logging.getLogger(__name__)

# Columns that hold addresses, the likeliest first. Case, `_`, `-` and spaces do not matter.
LIST_COLUMNS = (
    "url", "uri", "image_url", "image_uri", "img_url", "img_uri", "file_url", "file_uri", "path",
    "image_path", "img_path", "file_path", "file_name",
)  # fmt: skip
# What a list says of an object: the carried values, and how many could not be carried.
Said = tuple[PlainRow, int] | None
HEAD_BYTES = 4096  # bytes at the start of a text that show its encoding
LONGEST_LINE = 1 << 20  # characters; no address is longer
ROWS_AT_ONCE = 1 << 14  # rows of a Parquet list that are decoded together
CARRYING_ROWS_AT_ONCE = 1 << 8  # the same, with carried values, which may be long
_MARKS = (  # what a text in Unicode may begin with
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r")) + b"\x7f"


def file_name(fs: AbstractFileSystem, path: str) -> str:
    """The path without the parameters of a web address."""
    return re.split("[?#]", path, maxsplit=1)[0] if "http" in fs.protocol else path


def names_in_text(fs: AbstractFileSystem, path: str) -> Iterator[str]:
    """The names in a text, one a line, without the lines that are empty or begin with `#`.

    The text is UTF-8, or has a mark at its start that says what it is. Bytes that are not UTF-8 are
    kept, as Python keeps those of local names. Raises InputError if the file is no text.
    """
    with open_object(fs, path) as file:
        encoding = encoding_of(file.read(HEAD_BYTES), path)
        file.seek(0)
        errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
        text = io.TextIOWrapper(file, encoding, errors)  # it takes \r\n, \r and \n for line ends
        for number in range(1, sys.maxsize):
            line = text.readline(LONGEST_LINE)
            if len(line) == LONGEST_LINE:
                raise InputError(
                    f"line {number} of the list {mask(path)} has more than {LONGEST_LINE:,} "
                    "characters: a list has one address or path on each line"
                )
            if not line:
                return
            name = line.strip().removeprefix("\ufeff").strip()  # lists are made of several others
            if name and not name.startswith("#"):
                yield _unquoted(name)


def encoding_of(head: bytes, path: str) -> str:
    """The encoding of a text by its first bytes."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if head[1::2].count(0) > len(head) // 4 and 0 not in head[::2]:
        return "utf-16-le"
    if controls * 3 > len(head) or (controls * 50 > len(head) and not _is_utf8(head)):
        raise InputError(
            f"the list {mask(path)} is no text: a list has one address or path on each line. If "
            "it is an image or an archive, say so with --format"
        )
    return "utf-8"


def _is_utf8(head: bytes) -> bool:
    try:
        head[: len(head) - 3].decode()  # the last character may be cut
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 6
    return True


def _unquoted(name: str) -> str:
    """A name without the quotes around it, which tables have when they are written as text."""
    quoted = len(name) > 2 and name[0] == name[-1] and name[0] in "\"'"
    return name[1:-1] if quoted and name[0] not in name[1:-1] else name


def names_in_parquet(
    fs: AbstractFileSystem, path: str, choice: CarryChoice | None = None
) -> Iterator[tuple[str, Said]]:
    """The names in a Parquet file, each with the values that `choice` carries along.

    Raises InputError if it has no column of addresses, or not those that are to be carried along.
    """
    with open_object(fs, path) as file:
        parquet = open_parquet(file)
        columns = _address_columns(parquet.schema_arrow)
        if not columns:
            first, second, *others = LIST_COLUMNS
            raise InputError(
                f"the list {mask(path)} has no column of text named {first} or {second} (nor "
                f"{', '.join(others)})"
            )
        log_choice(path, columns)
        carry = choice.choose_for_list(path, parquet.schema_arrow) if choice else NO_CARRY
        read = list(dict.fromkeys([columns[0], *(column.name for column in carry.columns)]))
        rows = CARRYING_ROWS_AT_ONCE if carry else ROWS_AT_ONCE
        for batch in parquet.iter_batches(rows, columns=read):
            values = batch.column(columns[0]).cast(pa.large_string()).cast(pa.large_binary())
            for value, said in zip(values.to_pylist(), _said(batch, carry), strict=False):
                if value and (name := value.decode("utf-8", "surrogateescape").strip()):
                    yield name, said


def log_choice(path: str, columns: Sequence[str]) -> None:
    """Log which of several columns the addresses are read from: the first."""
    if len(columns) > 1:
        others = ", ".join(columns[1:])
        log.warning(
            "%s: addresses are read from column %s, not from %s", mask(path), columns[0], others
        )


def _said(batch: pa.RecordBatch, carry: Carry) -> Iterator[Said]:
    """What the rows of a list say of the objects that they name."""
    if not carry:
        return repeat(None)
    found = [converted(batch.column(column.name), column.type) for column in carry.columns]
    names = [column.name for column in carry.columns]
    return (
        _bounded(
            dict(zip(names, (values[row] for values, _ in found), strict=True)),
            sum(lost[row] for _, lost in found),
        )
        for row in range(len(batch))
    )


def _bounded(values: PlainRow, lost: int) -> Said:
    row, more = bounded(values, MOST_LISTED_BYTES)
    return row, lost + more


def is_parquet_list(fs: AbstractFileSystem, path: str) -> bool:
    """Whether a Parquet file has a column of addresses, and no column of images."""
    try:
        with open_object(fs, path) as file:
            parquet = open_parquet(file)
            return bool(_address_columns(parquet.schema_arrow)) and not _may_hold_images(parquet)
    except (pa.ArrowException, OSError) as error:  # Arrow raises OSError for some broken files
        if is_transient(error) or isinstance(error, FileNotFoundError | PermissionError):
            raise
        return False  # the row of the file will describe the damage


def _address_columns(schema: pa.Schema) -> list[str]:
    """The names of the columns of text that hold addresses, the likeliest first."""
    return address_names(
        field.name for field in schema if is_text(value_type(field.type)) and "." not in field.name
    )


def address_names(names: Iterable[str]) -> list[str]:
    """Those of some names of columns that are called addresses, the likeliest first."""
    plain = [_plain(name) for name in LIST_COLUMNS]
    found = {name: plain.index(_plain(name)) for name in names if _plain(name) in plain}
    return sorted(found, key=lambda name: (found[name], name not in LIST_COLUMNS))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _may_hold_images(parquet: pq.ParquetFile) -> bool:
    """Whether a column may hold images, by its type and name. The driver reads no page."""
    try:
        Columns(parquet).image_candidates()
    except NoImageColumn:
        return False
    return True
