"""The harness of chaos sees what it is there to see."""

import os
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from pipeline.storage.files import list_files, open_location
from tests.chaos.compare import Tables, difference, read_tables
from tests.chaos.faulty_store import FaultyStore
from tests.chaos.stale_listing import StaleListing
from tests.support.labelled import write_run
from tests.support.nights import LABELS, photo

BOX = (0, 1, 0.5, 0.0, 0.0, 1.0, 1.0)
WHOLE: Tables = {"a": [(("file:///a", "ok"), (BOX,))], "b": [(("file:///b", "ok"), ())]}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (WHOLE, (0, 0, 0)),
        ({"a": WHOLE["a"]}, (1, 0, 0)),
        ({**WHOLE, "b": 2 * WHOLE["b"]}, (0, 1, 0)),
        ({**WHOLE, "c": WHOLE["b"]}, (0, 1, 0)),
        ({**WHOLE, "a": [(("file:///a", "ok"), ())]}, (0, 0, 1)),
        ({**WHOLE, "a": [(("file:///a", "ok"), ((*BOX[:2], 0.5000001, *BOX[3:]),))]}, (0, 0, 1)),
    ],
    ids=["same", "lost", "twice", "foreign", "without its box", "another score"],
)
def test_differences_are_counted(found: Tables, expected: tuple[int, int, int]) -> None:
    counted = difference(found, WHOLE)
    assert (counted.lost, counted.twice, counted.differing) == expected


def test_tables_hold_all_rows_and_the_views_the_latest(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    assert read_tables(output) == {}
    for night, boxes in ((1, 2), (2, 1)):
        write_run(output, [photo("a.jpg", boxes)], LABELS, f"2026010{night}T000000Z-aaaaaa")
    (rows,) = read_tables(output).values()
    assert sorted(len(boxes) for _, boxes in rows) == [1, 2]
    ((latest,),) = read_tables(output, latest=True).values()
    assert len(latest[1]) == 1


def entry(key: str) -> bytes:
    return f"<Contents><Key>{key}</Key><Size>1</Size></Contents>".encode()


def answer(*keys: str) -> bytes:
    head = f"<ListBucketResult><KeyCount>{len(keys)}</KeyCount>".encode()
    return head + b"".join(map(entry, keys)) + b"</ListBucketResult>"


def test_a_stale_listing_lacks_what_is_new_and_has_what_was_deleted() -> None:
    stale = StaleListing()
    assert stale.listing(answer("x/a", "x/b%3D"), "x/") == answer("x/a", "x/b%3D")
    stale.stuck = True
    stale.note("PUT", "/lake/x/c", b"")
    stale.note("DELETE", "/lake/x/a", b"")
    stale.note("POST", "/lake", b"<Delete><Object><Key>x/b=</Key></Object></Delete>")
    assert stale.listing(answer("x/c"), "x/") == answer("x/a", "x/b%3D")
    assert stale.listing(answer(), "y/") == answer()
    stale.stuck = False
    assert stale.listing(answer("x/c"), "x/") == answer("x/c")


@pytest.mark.slow
def test_a_delayed_request_arrives_once_more_when_it_is_released(
    bucket: str,
) -> None:
    proxy = FaultyStore(os.environ["AWS_ENDPOINT_URL"])
    with proxy.running():
        fs = S3FileSystem(endpoint_url=proxy.url, skip_instance_cache=True)
        _, path = open_location(bucket, "OUTPUT")
        proxy.deed, proxy.deed_at = "delay", 2
        fs.pipe_file(f"{path}/a", b"first")
        fs.pipe_file(f"{path}/a", b"second")  # is cut, and repeated by s3fs
        fs.pipe_file(f"{path}/a", b"third")
        assert fs.cat_file(f"{path}/a") == b"third" and proxy.done.is_set()
        proxy.release.set()
        assert proxy.arrived.wait(30)
    assert list(list_files(*open_location(bucket, "OUTPUT"))) == [f"{path}/a"]
    direct, _ = open_location(bucket, "OUTPUT")
    assert direct.cat_file(f"{path}/a") == b"second"
