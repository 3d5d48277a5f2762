"""The version of a listed web object, by which a night notices that it was replaced."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.plan.digests import Known, Objects, consume_into_known, digest_versions
from pipeline.plan.plan import Plan, plan_shards
from pipeline.schema import UNSEEN, UNVERSIONED, Member
from pipeline.storage.versions import etag_of
from tests.support.samples import jpeg
from tests.support.web import VersionedFile

NIGHT, NEXT_NIGHT = "Mon, 23 Nov 2026 01:00:00 GMT", "Tue, 24 Nov 2026 01:00:00 GMT"


@pytest.fixture
def file() -> VersionedFile:
    return VersionedFile(jpeg())


@pytest.fixture
def plan(file: VersionedFile, tmp_path: Path) -> Iterator[Callable[..., Plan]]:
    """Plans a list of one address, at which `file` is served."""
    with file.served() as address:
        (tmp_path / "list.txt").write_text(f"{address}/a.jpg\n")

        def plan_night(etag: str | None = None) -> Plan:
            versions = [] if etag is None else [(f"{address}/a.jpg", etag)]
            known: Known = consume_into_known(
                [Objects(digest_versions(versions))], lambda: iter([])
            )
            return plan_shards(str(tmp_path / "list.txt"), known=known)

        yield plan_night


def etag_in(plan: Plan) -> str:
    ((member,),) = (shard.members for shard in plan.shards)
    assert isinstance(member, Member)
    return member.etag


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"1"', "Last-Modified": NIGHT}, {"ETag": '"2"', "Last-Modified": NIGHT}),
        ({"Last-Modified": NIGHT}, {"Last-Modified": NEXT_NIGHT}),
        ({"Content-MD5": "MQ=="}, {"Content-MD5": "Mg=="}),
        ({"Digest": "sha-256=MQ=="}, {"Digest": "sha-256=Mg=="}),
        ({}, {"Last-Modified": NIGHT}),
    ],
)
def test_an_object_of_another_version_has_changed_once(
    before: dict[str, str],
    after: dict[str, str],
    length: bool,
    file: VersionedFile,
    plan: Callable[..., Plan],
) -> None:
    file.headers, file.length = before, length
    first = plan()
    assert first.unversioned == (0 if before else 1)
    for _ in range(2):
        night = plan(etag_in(first))
        assert (night.known, night.changed, night.unversioned) == (1, 0, first.unversioned)
    file.headers = after
    changed = plan(etag_in(first))
    assert (changed.known, changed.changed, changed.unversioned) == (0, 1, 0)
    assert plan(etag_in(changed)).changed == 0


@pytest.mark.parametrize(
    "headers",
    [{"Digest": "sha-256=MQ==", "Last-Modified": NIGHT}, {"ETag": '"1"', "Last-Modified": NIGHT}],
)
def test_a_touched_object_has_not_changed(
    headers: dict[str, str], file: VersionedFile, plan: Callable[..., Plan]
) -> None:
    file.headers = headers
    etag = etag_in(plan())
    file.headers = {**headers, "Last-Modified": NEXT_NIGHT}
    assert plan(etag).changed == 0


def test_the_size_is_compared_where_there_is_no_version(
    file: VersionedFile, plan: Callable[..., Plan]
) -> None:
    etag = etag_in(plan())
    file.body = jpeg(1)[::-1] + b"more"
    assert plan(etag).changed == 1


@pytest.mark.parametrize("length", [True, False])
def test_labels_of_earlier_versions(
    length: bool, file: VersionedFile, plan: Callable[..., Plan]
) -> None:
    """They had an ETag or the size, or "None". Those with an ETag, or a size still, are kept."""
    file.length = length
    of_before = str(len(file.body)) if length else UNSEEN
    assert plan(of_before).changed == (0 if length else 1)
    file.headers = {"Last-Modified": NIGHT}
    assert plan(of_before).changed == 1
    file.headers = {"ETag": 'W/"a"', "Last-Modified": NIGHT}
    assert plan('W/"a').changed == 0


def test_an_object_without_a_version_that_was_missing_before(
    file: VersionedFile, plan: Callable[..., Plan]
) -> None:
    file.length, file.status = False, 404
    missing = plan()
    assert (etag_in(missing), missing.unversioned) == (UNSEEN, 0)
    file.status = 200
    assert etag_in(plan(UNSEEN)) == UNVERSIONED


def test_labels_stay_while_an_object_is_missing(
    file: VersionedFile, plan: Callable[..., Plan]
) -> None:
    file.status = 404
    for etag in ("1", "Mon, 23 Nov 2026 01:00:00 GMT-9", UNVERSIONED):
        assert plan(etag).changed == 0


def test_versions_of_other_stores_are_what_they_were() -> None:
    assert etag_of({"ETag": '"a"', "size": 1, "LastModified": 2}) == "a"
    assert etag_of({"etag": "b", "mtime": 3.0, "size": 1}) == "b"
    assert etag_of({"blob_id": "c", "size": 1}) == "c"
    assert etag_of({"mtime": 1.5, "size": 7}) == "1500000000-7"
    assert etag_of({}) == UNSEEN
