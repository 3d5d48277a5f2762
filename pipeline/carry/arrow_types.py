"""Kinds of Arrow's types, each of which has several layouts."""

import pyarrow as pa


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type in which values of `kind` are stored, if it is an extension type."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a column, without extension and dictionary."""
    kind = storage_type(kind)
    return storage_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def is_list(kind: pa.DataType) -> bool:
    """Whether `kind` is one of Arrow's types of lists. Maps are not lists here."""
    types = pa.types
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view,
             types.is_large_list_view)  # fmt: skip
    return any(test(kind) for test in tests)


def is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view,
             types.is_fixed_size_binary)  # fmt: skip
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in tests)
