"""The types of carried columns, and their names on the command line and in documents.

They are few, so that every engine reads them: scalars, texts, times, and lists of these. Times have
microseconds, as those of the other columns of `images`.
"""

import pyarrow as pa

from pipeline.carry.arrow_types import is_list, is_text, value_type

MOST_BITS_OF_INTEGERS_IN_FLOATS = 32  # float64 holds integers up to 2^53
LIST = "[]"  # at the end of the name of a type
_TYPES = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "datetime": pa.timestamp("us"),  # without a time zone
    "timestamp": pa.timestamp("us", "UTC"),
}
_ALIASES = {"str": "string", "int": "int64", "float": "float64", "double": "float64"}
_NAMES = {kind: name for name, kind in _TYPES.items()}


def names_of_types() -> str:
    """All names, for people."""
    return f"{', '.join(_TYPES)}, and lists of these such as string{LIST}"


def type_named(name: str) -> pa.DataType | None:
    """The type with a name; None if there is none."""
    if name.endswith(LIST):
        element = type_named(name.removesuffix(LIST))
        return None if element is None or pa.types.is_list(element) else list_of(element)
    return _TYPES.get(_ALIASES.get(name, name))


def list_of(element: pa.DataType) -> pa.DataType:
    """The type of lists; its elements are called as Parquet calls them."""
    return pa.list_(pa.field("element", element))


def name_of_type(kind: pa.DataType) -> str:
    """The name of a type of a carried column; the inverse of `type_named`."""
    if pa.types.is_list(kind):
        return f"{_NAMES[kind.value_type]}{LIST}"
    return _NAMES[kind]


def carried_type(kind: pa.DataType) -> pa.DataType | None:
    """The type in which values of a column of a file are carried; None if they are not carried.

    Not carried are bytes, decimals, structs, maps, and lists of lists.
    """
    types, kind = pa.types, value_type(kind)
    if is_list(kind):
        element = carried_type(kind.value_type)
        return None if element is None or types.is_list(element) else list_of(element)
    if is_text(kind) or types.is_null(kind):  # a column of nulls has no other type
        return pa.string()
    if types.is_float16(kind):
        return pa.float32()
    if types.is_date(kind):
        return pa.date32()
    if types.is_time(kind):
        return pa.time64("us")
    if types.is_timestamp(kind):
        return pa.timestamp("us", None if kind.tz is None else "UTC")
    return kind if kind in _NAMES else None


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """A type for the values of both: of numbers, or of lists of numbers; None if there is none.

    Integers and floats are float64. A larger integer than float64 holds is not carried then.
    """
    if first == second:
        return first
    if pa.types.is_list(first) and pa.types.is_list(second):
        element = common_type(first.value_type, second.value_type)
        return None if element is None else list_of(element)
    integers, floats = (
        sum(map(test, (first, second))) for test in (pa.types.is_integer, pa.types.is_floating)
    )
    if integers + floats < 2:
        return None
    return pa.float64() if floats else _common_integer(first, second)


def exact_common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """A type that holds every value of both as it is: of numbers, or of lists.

    None if there is none but text. Lists of values without such a type are lists of texts.
    """
    if pa.types.is_list(first) and pa.types.is_list(second):
        element = exact_common_type(first.value_type, second.value_type)
        return list_of(element or pa.string())
    common = common_type(first, second)
    if common == pa.float64() and any(
        pa.types.is_integer(kind) and kind.bit_width > MOST_BITS_OF_INTEGERS_IN_FLOATS
        for kind in (first, second)
    ):
        return None
    return common


def _common_integer(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds all integers of both; None if 64 bits do not."""
    signed = [pa.types.is_signed_integer(kind) for kind in (first, second)]
    if all(signed) or not any(signed):
        return max(first, second, key=lambda kind: kind.bit_width)
    bits = max(
        kind.bit_width if is_signed else 2 * kind.bit_width
        for kind, is_signed in zip((first, second), signed, strict=True)
    )
    return type_named(f"int{bits}")
