"""Failures outside the image are labelled again: `changed` ones always, others if asked."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.placement import Placement
from jobs.cluster.start import start_or_join_ray
from jobs.compact import compact
from jobs.label.label import label
from jobs.output.views import connect
from tests.support.labelling import tiny_options
from tests.support.samples import jpeg, write_jpegs, write_tar
from tests.support.tables import rows
from tests.support.web import QuietHandler, served

pytestmark = pytest.mark.usefixtures("local_ray")


class Gate(QuietHandler):
    """Serves files of known versions, and forbids to read those whose names are in `forbidden`."""

    files: dict[str, bytes]
    forbidden: set[str]
    reads: Counter[str]

    def do_HEAD(self) -> None:
        self._answer(200, self.files[self.path])

    def do_GET(self) -> None:
        type(self).reads[self.path] += 1
        body = b"" if self.path in self.forbidden else self.files[self.path]
        self._answer(200 if body else 403, body)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"v1"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class Lake:
    """A list of addresses on a server that can be told to forbid some of them."""

    def __init__(self, folder: Path, url: str, gate: type[Gate]):
        self.gate, self.url = gate, url
        self.list = folder / "list.txt"
        self.list.write_text("".join(f"{url}{name}\n" for name in gate.files))


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    tar = write_tar(tmp_path / "t.tar", {"x.jpg": jpeg(1), "y.jpg": b"no image"}).read_bytes()
    files = {"/a.jpg": jpeg(), "/b.jpg": jpeg(2), "/bad.jpg": b"no image", "/t.tar": tar}
    forbidden = {"/b.jpg", "/t.tar"}
    gate = type("Gate", (Gate,), {"files": files, "forbidden": forbidden, "reads": Counter()})
    with served(gate) as address:
        yield Lake(tmp_path, address, gate)


def latest(output: Path) -> dict[str, str]:
    """The status of each image in `latest_images`, by the last part of its id."""
    found = rows(output, "SELECT image_id, status FROM latest_images ORDER BY ALL")
    result = {name.rsplit("/", 1)[-1]: status for name, status in found}
    assert len(result) == len(found)
    return result


def runs(output: Path) -> int:
    return len(list(output.glob("_runs/*/manifest-*.json")))


BEFORE = {"a.jpg": "ok", "b.jpg": "unreadable", "bad.jpg": "undecodable", "t.tar": "unreadable"}
AFTER = {"a.jpg": "ok", "b.jpg": "ok", "bad.jpg": "undecodable", "t.tar#x": "ok",
         "t.tar#y": "undecodable"}  # fmt: skip


@pytest.mark.slow
def test_forbidden_objects_are_labelled_once_they_are_allowed(
    lake: Lake, tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    options = tiny_options(lake.list, output, weights)
    again = tiny_options(lake.list, output, weights, retry_failed=True)
    assert label(options) == 0
    assert latest(output) == BEFORE
    assert label(again) == 3  # still forbidden: they are read again, and all of them fail again
    assert (latest(output), runs(output)) == (BEFORE, 2)
    lake.gate.forbidden.clear()
    assert label(options) == 0  # nothing is new
    assert (latest(output), runs(output)) == (BEFORE, 2)
    lake.gate.reads.clear()
    capsys.readouterr()
    assert label(again) == 0
    assert "tried again: 2 objects that failed" in capsys.readouterr().err
    assert (latest(output), runs(output)) == (AFTER, 3)
    assert set(lake.gate.reads) == {"/b.jpg", "/t.tar"}
    for given in (again, options):
        assert label(given) == 0
    assert runs(output) == 3
    check_that_nothing_counts_twice(output)
    compact(str(output))
    assert latest(output) == AFTER
    check_that_nothing_counts_twice(output)
    assert label(again) == 0
    assert runs(output) == 1 + 3  # the compacted one, beside manifests of those that it replaced


def check_that_nothing_counts_twice(output: Path) -> None:
    with closing(connect(str(output))) as connection:
        boxes = connection.sql("SELECT count(*) FROM latest").fetchall()
        expected = connection.sql("SELECT sum(num_detections) FROM latest_images").fetchall()
        repeated = connection.sql(
            "SELECT image_id FROM latest_images GROUP BY 1 HAVING count(*) > 1"
        ).fetchall()
    assert boxes == expected
    assert repeated == []


@pytest.mark.slow
def test_retries_that_were_killed_are_finished_and_not_tried_twice(
    lake: Lake, tmp_path: Path, weights: str
) -> None:
    output = tmp_path / "out"
    again = tiny_options(lake.list, output, weights, retry_failed=True)
    assert label(tiny_options(lake.list, output, weights)) == 0
    lake.gate.forbidden.discard("/b.jpg")  # the archive stays forbidden

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.label.label.publish_run", die)
        with pytest.raises(KeyboardInterrupt):
            label(again)
    assert label(again) == 0
    assert latest(output) == BEFORE | {"b.jpg": "ok"}
    assert rows(output, "SELECT count(*), count(DISTINCT run) FROM images") == [(6, 2)]
    lake.gate.forbidden.clear()
    assert label(again) == 0
    assert latest(output) == AFTER


@pytest.mark.slow
def test_object_that_changed_while_it_was_read_is_labelled_although_its_version_is_known(
    tmp_path: Path, weights: str
) -> None:
    """It was replaced after the listing, and put back."""
    folder = write_jpegs(tmp_path / "photos", "ab")
    output = tmp_path / "out"

    def replace_and_start(*arguments: Any, **options: Any) -> Placement:
        (folder / "a.jpg").rename(tmp_path / "kept")
        (folder / "a.jpg").write_bytes(jpeg(5))
        return start_or_join_ray(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.label.label.start_or_join_ray", replace_and_start)
        assert label(tiny_options(folder, output, weights)) == 0
    assert latest(output) == {"a.jpg": "changed", "b.jpg": "ok"}
    (tmp_path / "kept").rename(folder / "a.jpg")
    assert label(tiny_options(folder, output, weights)) == 0
    assert latest(output) == {"a.jpg": "ok", "b.jpg": "ok"}
    assert label(tiny_options(folder, output, weights)) == 0
    assert runs(output) == 2
