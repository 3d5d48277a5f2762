"""Whatever a child writes into its pipe, its worker gets a row, a known error, or ChildFailed."""

import gc
import json
import struct
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.isolation import frames
from pipeline.isolation.child import (
    Answers,
    Child,
    ChildDied,
    ChildFailed,
    ChildMisbehaved,
    ChildRaised,
    ChildStuck,
    read_rows_in_child,
)
from tests.pipeline.isolation.hostile import Bomb, pickle_bomb

HOSTILE = "tests.pipeline.isolation.hostile"
SCHEMA = pa.schema(
    [
        pa.field("did", pa.string()),
        pa.field("small", pa.int8()),
        pa.field("large", pa.int64()),
        pa.field("seconds", pa.float32()),
        pa.field("content", pa.large_binary()),
        pa.field("more", pa.large_binary()),
    ]
)
MOST = 1 << 20
ANSWERS = Answers(SCHEMA, MOST)


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with closing(Child(ANSWERS, HOSTILE)) as found:
        yield found


def frame(kind: bytes, text: bytes, body: bytes = b"") -> bytes:
    return frames.HEAD.pack(kind, len(text), len(body)) + text + body


def row(body: bytes = b"", **values: Any) -> bytes:
    return frame(frames.ROW, json.dumps(values).encode(), body)


def still_works(child: Child) -> bool:
    """Whether the next request is answered, by another process where the last one was ended."""
    (found,) = child.stream(f"{HOSTILE}:say", (row(did="well"),), 60, 1)
    return bool(found["did"] == "well")


MALFORMED = {
    "no frame": b"x" * 100,
    "no kind": frame(b"z", b"{}"),
    "a pickle": frame(frames.ROW, pickle_bomb("/tmp/never-written")),
    "no json": frame(frames.ROW, b"{'did': 1}"),
    "no text": frame(frames.ROW, b"\xff\xfe"),
    "deep": frame(frames.ROW, b"[" * 500_000),
    "long number": frame(frames.ROW, b'{"large": ' + b"9" * 100_000 + b"}"),
    "no number": frame(frames.ROW, b'{"seconds": NaN}'),
    "endless": frame(frames.ROW, b'{"seconds": 1e999}'),
    "no row": frame(frames.ROW, b"[1]"),
    "another column": row(other=1),
    "text for a number": row(large="1"),
    "a number for text": row(did=1),
    "truth": row(small=True),
    "a fraction": row(large=1.5),
    "too large": row(small=128),
    "much too large": row(large=2**63),
    "too large for 32 bits": row(seconds=1e39),
    "half a sign": frame(frames.ROW, b'{"did": "\\ud800"}'),
    "text for bytes": row(content="abc"),
    "negative length": row(content=-1),
    "longer than the body": row(b"abc", content=4),
    "shorter than the body": row(b"abc", content=2),
    "longer in sum": row(b"abc", content=2, more=2),
    "huge body": frames.HEAD.pack(frames.ROW, 2, 1 << 60),
    "body over the limit": frames.HEAD.pack(frames.ROW, 2, MOST + 1),
    "huge text": frames.HEAD.pack(frames.ROW, (1 << 32) - 1, 0),
    "end before the last row": frame(frames.END, b"null"),
    "error without a name": frame(frames.ERROR, b'"KeyError"'),
    "error of another type": frame(frames.ERROR, b'["KeyError", 5]'),
    "ready once more": frame(frames.READY, b'""'),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_answers_end_the_child(child: Child, content: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(ChildMisbehaved):
        list(child.stream(f"{HOSTILE}:say", (content, 60), 60, 1))
    assert child._process is None
    assert time.monotonic() - began < 60  # it did not wait for what was announced
    assert still_works(child)


def test_good_answers_of_each_type(child: Child) -> None:
    content = row(b"abcde", did="ä", small=-128, large=2**63 - 1, seconds=2, content=3, more=2)
    (found,) = child.stream(f"{HOSTILE}:say", (content,), 60, 1)
    assert (found["did"], found["small"], found["large"]) == ("ä", -128, 2**63 - 1)
    assert (bytes(found["content"]), bytes(found["more"])) == (b"abc", b"de")
    assert pa.Table.from_pylist([found], schema=SCHEMA)["content"].to_pylist() == [b"abc"]
    (empty,) = child.stream(f"{HOSTILE}:say", (row(),), 60, 1)
    assert empty == dict.fromkeys(SCHEMA.names)


def test_a_pickle_is_not_loaded(child: Child, tmp_path: Path) -> None:
    """As a row, and as what `multiprocessing` would take for a message."""
    bomb = pickle_bomb(str(tmp_path / "exploded"))
    for content in (frame(frames.ROW, bomb), struct.pack("!i", len(bomb)) + bomb):
        with pytest.raises(ChildFailed):
            list(child.stream(f"{HOSTILE}:say", (content,), 60, 1))
    assert not (tmp_path / "exploded").exists()
    action, arguments = Bomb(str(tmp_path / "exploded")).__reduce__()
    action(*arguments)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("say", (b"", 60)),
        ("say", (row(did="well")[:-1], 60)),
        ("say", (frames.HEAD.pack(frames.ROW, 2, MOST), 60)),
        ("say_slowly", (row(did="w" * 2000),)),
    ],
    ids=["nothing", "half a frame", "a head alone", "a byte at a time"],
)
def test_a_frame_has_a_time_limit(child: Child, target: str, arguments: tuple[Any, ...]) -> None:
    assert still_works(child)  # so that the limit is not for its start
    began = time.monotonic()
    with pytest.raises(ChildStuck, match=r"within 0\.8 s"):
        list(child.stream(f"{HOSTILE}:{target}", arguments, 0.8, 1))
    assert 0.7 < time.monotonic() - began < 30


def test_frames_without_end_end(child: Child) -> None:
    """More rows than asked for are none: those that were asked for stand."""
    arguments = (row(did="again"),)
    found = []
    with pytest.raises(ChildMisbehaved):
        for one in child.stream(f"{HOSTILE}:say_again", arguments, 60, 5):
            found.append(one["did"])
    assert found == ["again"] * 5
    rows = read_rows_in_child(
        child,
        f"{HOSTILE}:say_again",
        lambda _: arguments,
        60,
        lambda number, error: {"did": f"failed {number}"},
        go_on=True,
        rows=3,
    )
    assert [one["did"] for one in rows] == ["again"] * 3
    assert still_works(child)


def test_an_answer_before_its_request_is_not_taken(child: Child) -> None:
    assert [one["did"] for one in child.stream(f"{HOSTILE}:speak_after_end", (), 60, 1)] == ["well"]
    time.sleep(0.5)
    assert still_works(child)


def test_rows_that_contradict_themselves_end_the_child() -> None:
    picky = Answers(SCHEMA, MOST, is_plausible=lambda row: row["did"] == "well")
    with closing(Child(picky, HOSTILE)) as child:
        assert still_works(child)
        with pytest.raises(ChildMisbehaved, match="contradict"):
            list(child.stream(f"{HOSTILE}:say", (row(did="ill"),), 60, 1))


def test_a_child_cannot_raise_what_its_worker_does_not_expect(child: Child) -> None:
    """A decoder cannot end the run as a store that is gone does."""
    content = frame(frames.ERROR, b'["StorageUnavailable", "gone"]')
    with pytest.raises(ChildRaised, match="StorageUnavailable: gone"):
        list(child.stream(f"{HOSTILE}:say", (content,), 60, 1))
    assert child._process is None
    with pytest.raises(ChildDied):
        list(child.stream("os:_exit", (3,), 60))


def test_text_that_no_table_holds_is_escaped_by_the_child(child: Child) -> None:
    (found,) = child.stream(f"{HOSTILE}:do", ("repeat", "a\udcffb"), 60, 1)
    assert found["did"] == "a\\udcffb"


def test_a_table_has_the_values_of_its_rows_and_keeps_none_of_their_buffers() -> None:
    """pa.array (26.0) keeps memoryviews for ever: a worker would fill its memory with images."""
    pixels = np.arange(100, dtype=np.uint8).view(Watched)
    gone = weakref.ref(pixels)
    rows: list[frames.Row] = [
        {"did": "a", "content": pixels.data, "more": pixels.data[10:20], "small": 1},
        {"did": "b", "content": None, "seconds": 0.5},
        {"did": None, "content": b"", "more": bytearray(b"xy"), "large": 1 << 40},
    ]
    table = frames.table_of_rows(rows, SCHEMA)
    table.validate(full=True)
    plain = [
        {name: bytes(v) if isinstance(v, memoryview) else v for name, v in row.items()}
        for row in rows
    ]
    assert table.equals(pa.Table.from_pylist(plain, schema=SCHEMA))
    assert frames.table_of_rows([], SCHEMA).equals(SCHEMA.empty_table())
    del pixels, rows
    gc.collect()
    assert gone() is None


class Watched(np.ndarray[Any, Any]):
    """An array that weak references can point to."""
