"""The values of carried columns as plain ones, which JSON holds without loss, and back.

A plain value is None, a text, a bool, an integer, or a list of these. Numbers and times are the
integers of their bits: so NaN and the largest integers cross every pipe, and a check of integers
checks all of them. Values are bounded, because anybody may have written INPUT.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.carry.arrow_types import is_list, value_type
from pipeline.carry.columns import Carry

Plain = Any  # None, str, bool, int, or a list of these
PlainRow = Mapping[str, Plain]

MOST_VALUE_BYTES = 64 << 10  # of one value, as UTF-8 text; a larger value is not carried
# Of the values of one image together, as JSON. They share the text of an answer of the reader's
# process (isolation/frames.py) with names and errors.
MOST_ROW_BYTES = 512 << 10
# Of the values of one entry of a list together: the driver holds some ten thousand entries.
MOST_LISTED_BYTES = 16 << 10
DAY_MICROSECONDS = 86_400_000_000
_FAILURES = (pa.ArrowException, ValueError, OverflowError, TypeError, RecursionError)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of Arrow that holds the plain values of a type of a carried column."""
    if pa.types.is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_string(kind) or pa.types.is_boolean(kind):
        return kind
    signed = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
    return signed[kind.bit_width]


def plain_struct(carry: Carry) -> pa.DataType:
    """The type of the plain values of a row."""
    return pa.struct([pa.field(one.name, plain_type(one.type)) for one in carry.columns])


def plain_values(array: pa.Array) -> list[Plain]:
    """The plain values of an array of a type of carried columns."""
    kind = array.type
    if pa.types.is_list(kind):
        inner, ends = plain_values(array.values), array.offsets.to_pylist()
        spans = zip(array.is_valid().to_pylist(), ends[:-1], ends[1:], strict=True)
        return [inner[start:stop] if is_valid else None for is_valid, start, stop in spans]
    if pa.types.is_string(kind):
        return _texts(array)
    if pa.types.is_boolean(kind):
        return list(array.to_pylist())
    return list(array.view(plain_type(kind)).to_pylist())


def _texts(array: pa.Array) -> list[str | None]:
    """Texts, with bytes that are not UTF-8 escaped (`\\xe9`): files may contain such texts."""
    values = array.cast(pa.binary()).to_pylist()
    return [None if one is None else one.decode("utf-8", "backslashreplace") for one in values]


def typed_array(values: Sequence[Plain], kind: pa.DataType) -> pa.Array:
    """Plain values as an array of their type; the inverse of `plain_values`."""
    return _typed(pa.array(values, plain_type(kind)), kind)


def _typed(plain: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind):
        inner = _typed(plain.values, kind.value_type)
        return pa.Array.from_buffers(kind, len(plain), plain.buffers()[:2], children=[inner])
    if pa.types.is_time(kind):  # files hold such times, and Arrow refuses files with them
        within = pc.and_(pc.greater_equal(plain, 0), pc.less(plain, DAY_MICROSECONDS))
        plain = pc.if_else(within, plain, pa.scalar(None, plain.type))
    return plain if plain.type == kind else plain.view(kind)


def struct_array(rows: Sequence[PlainRow | None], carry: Carry) -> pa.StructArray:
    """Rows of plain values as an array of `carry.struct`; absent values are null."""
    arrays = [
        typed_array([None if row is None else row.get(one.name) for row in rows], one.type)
        for one in carry.columns
    ]
    return pa.StructArray.from_arrays(arrays, fields=carry.fields())


def plain_rows(structs: pa.StructArray) -> list[dict[str, Plain]]:
    """The rows of an array of structs as plain values."""
    columns = {
        field.name: plain_values(values)
        for field, values in zip(structs.type, structs.flatten(), strict=True)
    }
    return [{name: values[row] for name, values in columns.items()} for row in range(len(structs))]


def converted(array: pa.Array, kind: pa.DataType) -> tuple[list[Plain], list[bool]]:
    """Values of a column of a file as plain values of the type `kind`, and which are not carried.

    A value that has no equal of this type is null, and not carried.
    """
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    try:
        return plain_values(_cast(array, kind)), [False] * len(array)
    except _FAILURES:
        pass
    found: list[Plain] = []
    for row in range(len(array)):
        try:
            found += plain_values(_cast(array.slice(row, 1), kind))
        except _FAILURES:
            found.append(None)
    valid = array.is_valid().to_pylist()
    return found, [valid[row] and found[row] is None for row in range(len(array))]


def can_be_converted(source: pa.DataType, kind: pa.DataType) -> bool:
    """Whether `converted` has a value of the type `kind` for any value of a column of `source`."""
    source = value_type(source)
    if pa.types.is_list(kind) and not pa.types.is_null(source):
        return is_list(source) and can_be_converted(source.value_type, kind.value_type)
    try:
        _cast(pa.array([], source), kind)
    except pa.ArrowNotImplementedError:
        return False
    return True


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values as another type. Times lose what is below a microsecond."""
    return pc.cast(array, options=pc.CastOptions(kind, allow_time_truncate=True))


def plain_of_json(value: Any, kind: pa.DataType) -> Plain:
    """A value of JSON as a plain value. Raises ValueError, or another of _FAILURES, if it has none.

    A text is also read as the number or the time that it spells. What is no text becomes a text, as
    JSON spells it, where the type is text.
    """
    if value is None:
        return None
    if pa.types.is_list(kind):
        if not isinstance(value, list):
            raise ValueError("it is no list")
        return [plain_of_json(one, kind.value_type) for one in value]
    if pa.types.is_string(kind):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, str):
        return _plain_of_text(value, kind)
    if isinstance(value, bool) != pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
        raise ValueError(f"it is no {kind}")
    if pa.types.is_floating(kind):
        return plain_values(_cast(pa.array([float(value)]), kind))[0]
    array = pa.array([value], kind if isinstance(value, int) else None)
    return plain_values(_cast(array, kind))[0]


def _plain_of_text(text: str, kind: pa.DataType) -> Plain:
    texts = pa.array([text], pa.string())
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            return plain_values(_cast(texts, kind))[0]
        except pa.ArrowInvalid:  # a time without a zone is one of UTC
            texts = pc.cast(texts, pa.timestamp("us"))
    return plain_values(_cast(texts, kind))[0]


def values_of_json(
    document: Mapping[str, Any], carry: Carry, most: int = MOST_ROW_BYTES
) -> tuple[dict[str, Plain], int]:
    """The carried values that a JSON object has, and how many are not carried.

    They are `bounded` by `most`.
    """
    found: dict[str, Plain] = {}
    lost = 0
    for column in carry.columns:
        try:
            found[column.name] = plain_of_json(document.get(column.name), column.type)
        except _FAILURES:
            lost += 1
    found, more = bounded(found, most)
    return found, lost + more


def bounded(row: PlainRow, most: int = MOST_ROW_BYTES) -> tuple[dict[str, Plain], int]:
    """A row without the values that are too large, and their number.

    Too large is a value above MOST_VALUE_BYTES, and one with which the row is above `most` bytes.
    """
    found: dict[str, Plain] = {}
    left = most
    for name, value in row.items():
        if isinstance(value, str | list):
            if _is_too_large(value) or (size := len(json.dumps(value))) > left:
                continue
            left -= size
        found[name] = value
    return found, len(row) - len(found)


def _is_too_large(value: str | list[Plain]) -> bool:
    if len(value) > MOST_VALUE_BYTES:
        return True
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return len(text.encode()) > MOST_VALUE_BYTES
