"""Frames: the bytes that a worker and its child exchange.

A frame is a kind (one byte), the lengths of a text and of a body, the text, and the body. An answer
is text that `json` reads, and bytes. A worker never unpickles an answer, because a hostile image
file may have taken over the child that decodes it. Pickles go the other way only.
"""

import json
import os
import select
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Row = dict[str, Any]
Body = bytes | bytearray | memoryview

HEAD = struct.Struct("<cIQ")
REQUEST, READY, ROW, END, ERROR = b"?", b"!", b"r", b".", b"e"
MOST_TEXT = 1 << 20  # bytes of the text of an answer
MOST_ERROR = 10_000  # characters of the message of an error


class MalformedAnswer(Exception):
    """An answer is not what the child was asked for."""


class Late(Exception):
    """A frame is not complete at its deadline."""


class Channel:
    """The worker's end of the pipe to its child. Raises Late, ConnectionError and EOFError."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self._wait = select.poll()

    def is_silent(self) -> bool:
        """Whether there is nothing to read, and the other end is open."""
        self._wait.register(self.descriptor, select.POLLIN)
        return not self._wait.poll(0)

    def send(self, kind: bytes, body: bytes, deadline: float) -> None:
        """Send a frame without text. It must have been taken at the monotonic time `deadline`."""
        for part in (HEAD.pack(kind, 0, len(body)), body):
            rest = memoryview(part)
            while rest:
                self._wait_for(select.POLLOUT, deadline)
                rest = rest[os.write(self.descriptor, rest) :]

    def receive(self, most: int, deadline: float) -> tuple[bytes, bytes, memoryview]:
        """Receive a frame: kind, text, and a body of at most `most` bytes.

        Raises MalformedAnswer, before anything is allocated, if it announces to be longer.
        """
        head = self._receive_bytes(HEAD.size, deadline)
        kind, text, body = HEAD.unpack(head)
        if text > MOST_TEXT or body > most:
            raise MalformedAnswer(f"it announces {text} and {body} bytes")
        return kind, bytes(self._receive_bytes(text, deadline)), self._receive_bytes(body, deadline)

    def _receive_bytes(self, size: int, deadline: float) -> memoryview:
        content = np.empty(size, np.uint8).data  # a bytearray would be zeroed first
        rest = content
        while rest:
            self._wait_for(select.POLLIN, deadline)
            count = os.readv(self.descriptor, [rest])
            if count == 0:
                raise EOFError
            rest = rest[count:]
        return content

    def _wait_for(self, event: int, deadline: float) -> None:
        self._wait.register(self.descriptor, event)
        if not self._wait.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Late

    def close(self) -> None:
        os.close(self.descriptor)


def send_answer(pipe: int, kind: bytes, text: object = None, *bodies: Body) -> None:
    """Send a frame from the child. `text` becomes JSON."""
    content = json.dumps(text).encode()
    head = HEAD.pack(kind, len(content), sum(len(body) for body in bodies))
    parts: list[Body] = [head + content, *bodies]
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(pipe, rest) :]


def send_row(pipe: int, row: Row) -> None:
    """Send a row from the child. The text has the length of each value that is bytes."""
    bodies = [value for value in row.values() if isinstance(value, Body)]
    send_answer(pipe, ROW, {name: _as_json(value) for name, value in row.items()}, *bodies)


def send_error(pipe: int, error: Exception) -> None:
    """Send the name of the error's class and its message."""
    send_answer(pipe, ERROR, [type(error).__name__, _as_json(str(error)[:MOST_ERROR])])


def _as_json(value: Any) -> Any:
    if isinstance(value, str):  # text that no table can hold is escaped
        return value.encode("utf-8", "backslashreplace").decode()
    return len(value) if isinstance(value, Body) else value


def receive_request(pipe: int) -> bytearray:
    """Receive the body of the worker's next frame in the child. Raises EOFError at the end."""
    *_, size = HEAD.unpack(_receive_all(pipe, HEAD.size))
    return _receive_all(pipe, size)


def _receive_all(pipe: int, size: int) -> bytearray:
    content = bytearray(size)
    rest = memoryview(content)
    while rest:
        count = os.readv(pipe, [rest])
        if count == 0:
            raise EOFError
        rest = rest[count:]
    return content


def text_of(text: bytes) -> Any:
    """The value of the text of an answer. Raises MalformedAnswer."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswer("its text is not JSON") from error


def _refuse(name: str) -> None:
    raise ValueError(name)


class RowReader:
    """Converts the frames of rows of a schema to rows, and checks every value."""

    def __init__(self, schema: pa.Schema) -> None:
        self.kinds = {field.name: _check_of(field.type) for field in schema}

    def row(self, text: bytes, body: memoryview) -> Row:
        """The row in a frame. Columns that are absent are null. Raises MalformedAnswer."""
        values = text_of(text)
        if not isinstance(values, dict) or not values.keys() <= self.kinds.keys():
            raise MalformedAnswer("its columns are others than those of its schema")
        rest = body
        row: Row = dict.fromkeys(self.kinds)
        for name, value in values.items():
            check = self.kinds[name]
            if value is not None and not check(value, len(rest)):
                raise MalformedAnswer(f"its column {name} has another type or range")
            row[name] = value
            if check is _is_length and value is not None:
                row[name] = rest[:value]
                rest = rest[value:]
        if rest:
            raise MalformedAnswer("its body is longer than its columns")
        return row


def table_of_rows(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`; absent values are null. Binary values may be memoryviews.

    pa.array (26.0) keeps each memoryview for ever, so columns of large_binary are made of buffers.
    """
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        is_binary = pa.types.is_large_binary(field.type)
        columns.append(_binary_array(values) if is_binary else pa.array(values, field.type))
    return pa.table(columns, schema=schema)


def _binary_array(values: Sequence[Body | None]) -> pa.Array:
    """Bytes as an array of large_binary. One value is not copied, several are copied once."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([0 if value is None else len(value) for value in values], out=offsets[1:])
    _, validity = pa.array([value is not None for value in values], pa.bool_()).buffers()
    (content, *others) = [value for value in values if value is not None] or [b""]
    if others:
        content = b"".join((content, *others))
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)


def _is_text(value: Any, _: int) -> bool:
    if not isinstance(value, str):
        return False
    # No table holds half a surrogate pair.
    return value.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in value)


def _is_length(value: Any, left: int) -> bool:
    return type(value) is int and 0 <= value <= left


def _is_number(value: Any, _: int) -> bool:
    return type(value) in (int, float) and abs(value) < 3e38  # fits a float of 32 bits


def _is_integer(bits: int) -> Callable[[Any, int], bool]:
    return lambda value, _: type(value) is int and -(1 << bits - 1) <= value < 1 << bits - 1


def _is_row(checks: dict[str, Callable[[Any, int], bool]]) -> Callable[[Any, int], bool]:
    """A check of the values of a struct, none of which is binary; absent values are null."""

    def check(value: Any, _: int) -> bool:
        return isinstance(value, dict) and all(
            name in checks and (one is None or checks[name](one, 0)) for name, one in value.items()
        )

    return check


def _check_of(kind: pa.DataType) -> Callable[[Any, int], bool]:
    if pa.types.is_string(kind):
        return _is_text
    if pa.types.is_large_binary(kind):
        return _is_length
    if pa.types.is_floating(kind):
        return _is_number
    if pa.types.is_boolean(kind):
        return lambda value, _: type(value) is bool
    if pa.types.is_list(kind):
        element = _check_of(kind.value_type)
        return lambda value, _: (
            isinstance(value, list) and all(one is None or element(one, 0) for one in value)
        )
    if pa.types.is_struct(kind):
        return _is_row({field.name: _check_of(field.type) for field in kind})
    assert pa.types.is_signed_integer(kind), f"no rows with {kind} come from children"
    return _is_integer(kind.bit_width)
