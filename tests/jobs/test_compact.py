"""`compact` keeps the labels as they are, whatever is killed or read meanwhile."""

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import compact as compact_module
from jobs.cli import main
from jobs.compact import compact
from jobs.output import paths
from jobs.output.catalog import committed_runs
from jobs.output.known_objects import read_known_objects
from jobs.output.log import Added, Entry, Removed, State
from jobs.output.log_writer import LogWriter
from jobs.query import answer_query
from pipeline.plan.digests import digests, find_positions
from pipeline.plan.shards import shards_of_table
from pipeline.storage.files import open_location
from pipeline.storage.s3 import S3Files
from tests.chaos.faulty_store import FaultyStore
from tests.support.committed import labelling_runs
from tests.support.labelled import write_run
from tests.support.nights import ARCHIVE, LABELS, NIGHTS, member, photo, write_nights
from tests.support.tables import rows


@pytest.fixture
def output(tmp_path: Path) -> str:
    return write_nights(tmp_path / "labels")


NEWEST = (
    "SELECT image_id, uri, status, num_detections, max_score, etag FROM latest_images ORDER BY ALL",
    "SELECT image_id, detection, label, score, x_min FROM latest ORDER BY ALL",
)


def read_newest(output: str) -> list[list[tuple[Any, ...]]]:
    return [rows(output, sql) for sql in NEWEST]


def test_latest_are_the_newest_labels_of_each_object(output: str) -> None:
    images, boxes = read_newest(output)
    assert [(row[0].rsplit("/", 1)[1], row[3]) for row in images] == [
        ("a.jpg", 3), ("a.tar#x", 3), ("b.jpg", 1), ("c.jpg", 0), ("d [1].jpg", 4),
    ]  # fmt: skip
    assert len(boxes) == 3 + 3 + 1 + 4
    assert rows(output, "SELECT count(*) FROM images") == [(8,)]


@pytest.mark.parametrize(
    ("images_a_file", "boxes_a_file", "parts"), [(99, 99, 1), (2, 99, 3), (99, 4, 3)]
)
def test_compacting_keeps_what_latest_shows_in_few_files(
    output: str, images_a_file: int, boxes_a_file: int, parts: int
) -> None:
    before = read_newest(output)
    (done,) = compact(output, images_a_file, boxes_a_file)
    assert read_newest(output) == before
    assert (done.runs, done.images, done.superseded) == (3, 5, 3)
    (run,) = committed_runs(output)
    assert len(run["files"]) == 2 * parts
    for number in range(len(run["files"]) // 2):  # the parts of a number hold the same images
        pair = [f["path"] for f in run["files"] if f"/part-{number:05d}-" in f["path"]]
        boxes, images = (
            pq.read_table(Path(output, name), partitioning=None) for name in sorted(pair)
        )
        counted = dict(
            zip(*(images[n].to_pylist() for n in ("image_id", "num_detections")), strict=True)
        )
        assert {n for n, count in counted.items() if count} == set(boxes["image_id"].to_pylist())
    assert [path.name for path in Path(output, "images").iterdir()] == [f"run={run['run_id']}"]
    assert main(["runs", output, "--verify"]) == 0


def newest_labels_have_version(output: str, uri: str, etag: str) -> bool:
    """Whether the newest labels of an object are those of this version of it."""
    known = read_known_objects(output, committed_runs(output), "in")
    (position,) = find_positions(digests([uri]), known.uris)
    return bool(position >= 0 and (known.etags[:, position] == digests([etag])[:, 0]).all())


def test_the_plan_of_a_compacted_run_finds_its_images_and_knows_their_versions(output: str) -> None:
    compact(output)
    (run,) = committed_runs(output)
    plan = shards_of_table(pq.read_table(Path(output, run["plan"])))
    by_name = {shard.shard: shard for shard in plan}
    for uri, shard, index, etag in rows(
        output, "SELECT uri, shard, index_in_shard, etag FROM images"
    ):
        of_files = by_name[shard].kind == "files"
        member = by_name[shard].members[index if of_files else 0]
        assert (member.uri, member.etag) == (uri, etag)
    assert newest_labels_have_version(output, "file:///lake/b.jpg", "2")


def test_compacting_again_does_nothing(output: str) -> None:
    compact(output)
    assert compact(output) == []


def test_runs_that_were_compacted_keep_their_reports(output: str) -> None:
    compact(output)
    assert [run["run_id"] for run in labelling_runs(output)] == NIGHTS
    write_run(Path(output), [photo("e.jpg", 1)], LABELS, "20990101T000000Z-aaaaaa")
    compact(output)
    assert len(labelling_runs(output)) == 4
    assert len(committed_runs(output)) == 1


@pytest.mark.parametrize("step", ["_write_manifest", "_append", "_keep_checkpoint"])
def test_a_killed_compact_leaves_the_labels_as_they_were(
    output: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed before its entry of the log, or after it, before the old files are deleted."""
    before = read_newest(output)
    original = getattr(LogWriter, step)

    def kill(writer: LogWriter, *arguments: Any) -> Any:
        if writer.fenced:
            raise KeyboardInterrupt
        return original(writer, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(LogWriter, step, kill)
        compact(output)
    assert read_newest(output) == before
    compact(output)
    assert read_newest(output) == before
    (run,) = committed_runs(output)
    assert [path.name for path in Path(output, "images").iterdir()] == [f"run={run['run_id']}"]


@pytest.mark.slow
def test_readers_are_undisturbed(output: str) -> None:
    """All queries that run while runs are compacted give the same answer."""
    expected, wrong, stop = read_newest(output)[1], [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            found = answer_query(output, lambda c: c.sql(NEWEST[1]).fetchall())
            if found != expected:
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for night in range(4):
        compact(output)
        write_run(Path(output), [], LABELS, f"2098010{night + 1}T000000Z-aaaaaa")
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong


@pytest.mark.slow
def test_compact_verify_and_delete_work_on_s3(output: str, bucket: str) -> None:
    expected = read_newest(output)
    fs, path = open_location(f"{bucket}/labels", "OUTPUT")
    fs.put(output, path, recursive=True)
    labels = f"{bucket}/labels"
    assert read_newest(labels) == expected
    assert len(compact(labels)) == 1
    assert read_newest(labels) == expected
    assert main(["runs", labels, "--verify"]) == 0
    (run,) = committed_runs(labels)
    assert len(fs.find(f"{path}/images")) == 1
    assert main(["runs", labels, "--delete", run["run_id"], "--yes"]) == 0
    left = {name[len(path) + 1 :] for name in fs.find(path)}
    assert {name for name in left if not name.startswith(paths.LOG)} == {paths.OLD_LOCK}


@pytest.mark.parametrize("folder", ["label=weekly", "score=1", "run=7"])
def test_folders_above_an_output_are_no_columns(output: str, folder: str, tmp_path: Path) -> None:
    expected = read_newest(output)
    inside = str(shutil.copytree(output, tmp_path / folder / "labels"))
    assert read_newest(inside) == expected
    compact(inside)
    assert read_newest(inside) == expected


@pytest.mark.slow
def test_a_compacted_run_knows_only_objects_whose_rows_it_keeps(tmp_path: Path) -> None:
    """Two INPUTs overlap, and the newest labels of an object are those of the other INPUT."""
    output = str(tmp_path)
    write_run(tmp_path, [photo("sub/x.jpg", 1, "1")], LABELS, NIGHTS[0])
    write_run(tmp_path, [photo("sub/x.jpg", 2, "2")], LABELS, NIGHTS[1], source="in/sub")
    write_run(tmp_path, [photo("y.jpg", 1)], LABELS, NIGHTS[2])
    expected = read_newest(output)
    compact(output)
    assert read_newest(output) == expected
    assert newest_labels_have_version(output, "file:///lake/sub/x.jpg", "2")


@pytest.mark.parametrize("status", ["unreadable", "unavailable", "changed"])
def test_an_object_that_cannot_be_fetched_keeps_its_labels(tmp_path: Path, status: str) -> None:
    """It is no known object in its new version, neither before nor after its runs are merged."""
    output = str(tmp_path)
    write_run(tmp_path, [photo("x.jpg", 2), member("k", 1), photo("z.jpg", 1)], LABELS, NIGHTS[0])
    expected = read_newest(output)
    failed = [photo("x.jpg", 0, "2"), replace(member("k", 0, "2"), image_id=ARCHIVE)]
    failed = [replace(image, status=status) for image in failed]
    write_run(tmp_path, [*failed, photo("new.jpg", 0)], LABELS, NIGHTS[1])
    new = ("file:///lake/new.jpg", "file:///lake/new.jpg", "ok", 0, None, "1")
    expected[0].append(new)
    expected[0].sort()
    assert read_newest(output) == expected
    compact(output)
    assert read_newest(output) == expected
    for uri in ("file:///lake/x.jpg", ARCHIVE):
        assert newest_labels_have_version(output, uri, "1")
    write_run(tmp_path, [photo("x.jpg", 1, "2")], LABELS, "20990101T000000Z-aaaaaa")
    assert rows(output, "SELECT num_detections FROM latest_images WHERE uri LIKE '%x.jpg'") == [
        (1,)
    ]


def test_runs_without_newest_labels_are_compacted_too(tmp_path: Path) -> None:
    output = str(tmp_path)
    for night in NIGHTS[:2]:
        write_run(tmp_path, [photo("x.jpg", 1, night)], LABELS, night)
    write_run(tmp_path, [photo("x.jpg", 2, "3")], LABELS, NIGHTS[2], source="other")
    compact(output)
    assert main(["runs", output, "--delete", NIGHTS[2], "--yes"]) == 0
    assert read_newest(output) == [[], []]


def test_compacting_that_fails_leaves_nothing(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_no_space(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(compact_module, "write_table", raise_no_space)
        compact(output)
    assert sorted(path.name for path in Path(output, "images").iterdir()) == [
        f"run={night}" for night in NIGHTS
    ]


def test_report_names_the_page_of_a_compacted_run(
    output: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    compact(output)
    for night in NIGHTS:
        Path(output, "_runs", night, "report.json").write_text("{}")
    page = ["report", output, "--run", NIGHTS[0], "--html", str(tmp_path / "page.html")]
    assert main(page) == 2
    assert f"_runs/{NIGHTS[0]}/report.html" in capsys.readouterr().err


def test_a_log_of_thousands_of_merges_is_read() -> None:
    state = State()
    for number in range(1, 5001):
        added = Added(str(number), "", "")
        gone = Removed(str(number - 1), "compacted", str(number))
        removes = () if number == 1 else (gone,)
        state.apply(Entry(number, "commit", "", "", (added,), removes))
    assert state.counting_runs() == ["5000"]
    assert len(state.living_runs()) == 5000


@pytest.mark.slow
def test_queries_are_answered_although_requests_fail(
    output: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_newest(output)
    fs, path = open_location(f"{bucket}/labels", "OUTPUT")
    fs.put(output, path, recursive=True)
    store = FaultyStore(os.environ["AWS_ENDPOINT_URL"], 1)
    store.kinds = ("slow_down", "error", "reset")
    with store.running(), monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", store.url)
        S3Files.clear_instance_cache()
        store.rate = 0.05
        for _ in range(5):
            assert read_newest(f"{bucket}/labels") == expected
        assert store.injected.total() > 0
        assert len(compact(f"{bucket}/labels")) == 1
        store.rate = 0.0
        assert read_newest(f"{bucket}/labels") == expected
    S3Files.clear_instance_cache()
