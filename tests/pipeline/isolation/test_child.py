"""A file that crashes a process, stalls, needs too much memory or changes costs only its row."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.formats.read import read_rows
from pipeline.isolation import child
from pipeline.isolation.child import Answers, Child, ChildDied, ChildRaised, Row
from pipeline.plan.plan import plan_shards
from pipeline.schema import ENCODED, Member, Shard
from pipeline.stages import read
from pipeline.stages.prepare import Preparer
from pipeline.storage.files import open_location
from tests.chaos.injected import INJECTED
from tests.support.samples import RULE, encoded, jpeg, write_tar
from tests.support.web import QuietHandler, served


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make children start with a decoder that fails on planted files."""
    monkeypatch.syspath_prepend(str(INJECTED))
    monkeypatch.setenv("DETR_BATCH_FAULTS", str(tmp_path))


def table(contents: list[bytes]) -> pa.Table:
    rows = [
        {"image_id": str(i), "shard": "s", "index_in_shard": i, "status": "ok", "encoded": content}
        for i, content in enumerate(contents)
    ]
    return pa.Table.from_pylist(rows, schema=ENCODED)


class AwaitedChild(Child):
    """A new process is ready before the time limit of an image begins: it may take seconds."""

    def stream(
        self, target: str, arguments: tuple[Any, ...], seconds: float, rows: int | None = None
    ) -> Iterator[Row]:
        self._ready(time.monotonic() + 60)
        return super().stream(target, arguments, seconds, rows)


@pytest.mark.slow
def test_each_harmful_image_costs_its_own_row(faults: None) -> None:
    preparer = Preparer(RULE, seconds=5)
    answers, preload = preparer.child.answers, preparer.child.preload
    preparer.child = AwaitedChild(answers, preload, memory=1 << 30)
    good = jpeg()
    contents = [good, b"FAULT-CRASH", good, b"FAULT-STILL", good, b"FAULT-DEVOUR", b"FAULT-LEAVE"]
    rows = [row for block in preparer(table([*contents, good])) for row in block.to_pylist()]
    assert [row["status"] for row in rows] == [
        "ok", "worker_crash", "ok", "timed_out", "ok", "undecodable", "worker_crash", "ok",
    ]  # fmt: skip
    assert [row["image_id"] for row in rows] == [str(i) for i in range(8)]
    assert "SIGSEGV" in rows[1]["error"] and "within 5 s" in rows[3]["error"]
    assert "memory" in rows[5]["error"] and "exit code 3" in rows[6]["error"]


def test_the_child_is_kept_from_block_to_block() -> None:
    preparer = Preparer(RULE)
    running = set()
    for _ in range(3):
        assert [len(block) for block in preparer(table([jpeg()]))] == [1]
        assert preparer.child._process is not None
        running.add(preparer.child._process.pid)
    assert len(running) == 1


def test_nothing_is_imported_from_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may belong to a lake that holds a file `numpy.py`."""
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    rows = [row for block in Preparer(RULE)(table([jpeg()])) for row in block.to_pylist()]
    assert [row["status"] for row in rows] == ["ok"]


class StallingServer(QuietHandler):
    """Sends an image, but nothing at all where the name begins with "stall"."""

    def do_GET(self) -> None:
        while self.path.startswith("/stall"):
            time.sleep(0.1)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(jpeg())


@pytest.mark.slow
def test_a_read_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "READ_SECONDS", 15)  # a new child may take seconds
    names = ("first.jpg", "stall.jpg", "last.jpg")
    with served(StallingServer) as address:
        members = tuple(Member(f"{address}/{name}", "", -1) for name in names)
        rows = encoded(Shard("list", "files", members))
    assert [row["status"] for row in rows] == ["ok", "timed_out", "ok"]
    assert rows[2]["shard_size"] == 3


def change_and_list(url: str, names: list[str], contents: list[bytes]) -> None:
    fs, path = open_location(url, "INPUT")
    fs.makedirs(path, exist_ok=True)
    for name, content in zip(names, contents, strict=True):
        fs.pipe_file(f"{path}/{name}", content)


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "in")
    bucket: str = request.getfixturevalue("bucket")
    return bucket


def test_objects_that_changed_after_they_were_listed_are_noticed(
    place: str, tmp_path: Path
) -> None:
    """Objects of the same size and of another size are noticed; unchanged ones are labelled."""
    tar = write_tar(tmp_path / "t.tar", {"a.jpg": jpeg(1)}).read_bytes()
    other = write_tar(tmp_path / "t.tar", {"a.jpg": jpeg(2)}).read_bytes()
    pq.write_table(pa.table({"image": [jpeg(1)]}), tmp_path / "p.parquet")
    parquet = (tmp_path / "p.parquet").read_bytes()
    pq.write_table(pa.table({"image": [jpeg(3), jpeg(4)]}), tmp_path / "p.parquet")
    names = ["kept.jpg", "longer.jpg", "same.jpg", "t.tar", "p.parquet"]
    change_and_list(place, names, [jpeg(1), b"x" * 500, b"y" * 500, tar, parquet])
    shards = plan_shards(place).shards
    time.sleep(0.05)
    changed = [b"w" * 501, b"z" * 500, other, (tmp_path / "p.parquet").read_bytes()]
    change_and_list(place, names[1:], changed)
    rows = [row for shard in shards for row in encoded(shard)]
    statuses = {row["uri"].rsplit("/", 1)[-1]: row["status"] for row in rows}
    assert statuses == {name: "ok" if name == "kept.jpg" else "changed" for name in names}


def test_an_archive_that_changes_while_it_is_read_is_noticed(bucket: str, tmp_path: Path) -> None:
    members = {f"{i}.jpg": os.urandom(3 << 20) for i in range(4)}
    content = write_tar(tmp_path / "t.tar", members).read_bytes()
    change_and_list(bucket, ["t.tar"], [content])
    (shard,) = plan_shards(bucket).shards
    rows = read_rows(shard, 0)
    first = next(rows)
    change_and_list(bucket, ["t.tar"], [content[::-1]])
    rest = list(rows)
    assert first["encoded"] == members["0.jpg"]
    assert rest[-1]["status"] == "changed" and len(rest) < 4


HERE = "tests.pipeline.isolation.test_child"
NUMBERS = Answers(pa.schema([("at", pa.int64())]), 0, errors=(ZeroDivisionError,))


def test_a_child_that_is_gone_is_replaced() -> None:
    worker = Child(NUMBERS, HERE)
    assert [row["at"] for row in worker.stream(f"{HERE}:counted", (3,), 30)] == [0, 1, 2]
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    assert [row["at"] for row in worker.stream(f"{HERE}:counted", (2,), 30)] == [0, 1]
    with pytest.raises(ChildDied, match="exit code 7"):
        list(worker.stream("os:_exit", (7,), 30))
    tries = child.read_rows_in_child(
        worker,
        f"{HERE}:dying_at_two",
        lambda number: (number,),
        30,
        lambda number, why: {"failed": number},
        go_on=True,
    )
    assert list(tries) == [{"at": 0}, {"at": 1}, {"failed": 2}, {"at": 3}]


def test_errors_cross_by_their_names() -> None:
    """Those that a worker expects are raised as they are; all others are failures of the child."""
    worker = Child(NUMBERS, HERE)
    with pytest.raises(ZeroDivisionError, match="by nought"):
        list(worker.stream(f"{HERE}:counted", ("ZeroDivisionError",), 30))
    with pytest.raises(ChildRaised, match=r"KeyError: .*by nought"):
        list(worker.stream(f"{HERE}:counted", ("KeyError",), 30))
    assert [row["at"] for row in worker.stream(f"{HERE}:counted", (2,), 30)] == [0, 1]


def counted(count: int | str) -> Iterator[dict[str, int]]:
    if isinstance(count, str):
        raise {"ZeroDivisionError": ZeroDivisionError, "KeyError": KeyError}[count]("by nought")
    yield from ({"at": number} for number in range(count))


def dying_at_two(start: int) -> Iterator[dict[str, int]]:
    for number in range(start, 4):
        if number == 2:
            os._exit(1)
        yield {"at": number}
