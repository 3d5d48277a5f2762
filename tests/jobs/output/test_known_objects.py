"""Which objects are known, and which of those that failed are tried again."""

from pathlib import Path
from typing import Any

import pytest

from jobs.output.catalog import read_catalog
from jobs.output.errors import DamagedOutput
from jobs.output.known_objects import LabelRequest, known_objects
from jobs.output.run_documents import read_document, write_record
from pipeline import schema
from pipeline.plan.digests import digests, find_positions
from tests.support.labelled import Labelled, write_run

FIRST, SECOND = "20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb"
STATUSES = sorted(
    value
    for name, value in vars(schema).items()
    if name.isupper() and isinstance(value, str) and name not in ("UNSEEN", "NOT_ALLOWED")
)


def is_known(output: Path, uri: str, attempts: tuple[str, ...] = (), **request: Any) -> bool:
    """Whether an object need not be labelled again."""
    wanted = LabelRequest("in", "made-by-hand", 0.0, "f00d", **request)
    known = known_objects(str(output), wanted, read_catalog(str(output)), attempts)
    (position,) = find_positions(digests([uri]), known.uris)
    assert position >= 0
    assert known.of_input[position]
    return bool(known.labelled[position])


@pytest.mark.parametrize("status", STATUSES)
def test_failures_outside_the_image_are_tried_again(status: str, tmp_path: Path) -> None:
    images = [Labelled("a"), Labelled("b", status=status)]
    archive = [Labelled(f"t#{i}", status=status if i else "ok", shard="t", uri="t") for i in (0, 1)]
    write_run(tmp_path, [*images, *archive], ("",), FIRST)
    always = status in ("changed", "unavailable")
    outside = ("unreadable", "address_not_allowed", "timed_out", "worker_crash")
    asked = always or status in outside
    for uri in ("b", "t"):
        assert is_known(tmp_path, uri) is not always
        assert is_known(tmp_path, uri, retry_failed=True) is not asked
        assert is_known(tmp_path, uri, (FIRST,), retry_failed=True)
    assert is_known(tmp_path, "a", retry_failed=True)


@pytest.mark.parametrize("status", STATUSES)
def test_files_that_failed_under_other_options_are_tried_again(status: str, tmp_path: Path) -> None:
    """A tar that --format images took for an image, or a column that was misspelt."""
    write_run(tmp_path, [Labelled("a"), Labelled("b", status=status)], ("",), FIRST)
    record = read_document(str(tmp_path), FIRST, "run.json")
    options = {**record["options"], "format": "images", "image_column": None, "id_column": None}
    write_record(str(tmp_path), FIRST, {**record, "options": options})
    always = status in ("changed", "unavailable")
    misread = status in ("corrupt_shard", "empty_shard", "missing_bytes", "undecodable")
    for reading in (("auto", None, None), ("images", "picture", None), ("images", None, "name")):
        assert is_known(tmp_path, "b", reading=reading) is not (misread or always)
        assert is_known(tmp_path, "a", reading=reading)
    assert is_known(tmp_path, "b", reading=("images", None, None)) is not always


@pytest.mark.parametrize("status", ["ok", "undecodable"])
def test_object_that_a_later_run_labelled_is_known(status: str, tmp_path: Path) -> None:
    write_run(tmp_path, [Labelled("a", status="unreadable")], ("",), FIRST)
    write_run(tmp_path, [Labelled("a", status=status)], ("",), SECOND)
    assert is_known(tmp_path, "a", retry_failed=True)


def test_object_whose_later_label_failed_is_tried_again(tmp_path: Path) -> None:
    write_run(tmp_path, [Labelled("a")], ("",), FIRST)
    write_run(tmp_path, [Labelled("a", etag="f", status="timed_out")], ("",), SECOND)
    assert is_known(tmp_path, "a")
    assert not is_known(tmp_path, "a", retry_failed=True)


def test_only_tables_of_runs_with_such_failures_are_read(tmp_path: Path) -> None:
    write_run(tmp_path, [Labelled("a"), Labelled("b", status="undecodable")], ("",), FIRST)
    (table,) = tmp_path.glob(f"images/run={FIRST}/*.parquet")
    table.unlink()
    assert is_known(tmp_path, "a", retry_failed=True)
    write_run(tmp_path, [Labelled("c", status="unreadable")], ("",), SECOND)
    (table,) = tmp_path.glob(f"images/run={SECOND}/*.parquet")
    table.unlink()
    assert is_known(tmp_path, "c")
    with pytest.raises(DamagedOutput, match=table.name):
        is_known(tmp_path, "c", retry_failed=True)
