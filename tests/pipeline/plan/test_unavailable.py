"""An object that always fails costs a row while stores answer. A store that is gone ends a run."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import ClientTimeout
from botocore.exceptions import ClientError

from pipeline.formats.read import read_rows
from pipeline.plan.digests import Objects, consume_into_known, digest_versions
from pipeline.plan.plan import plan_shards
from pipeline.schema import UNREACHED, Shard
from pipeline.storage import availability, retries
from pipeline.storage.errors import StorageUnavailable
from pipeline.storage.files import open_location
from pipeline.storage.web import WebFileSystem
from tests.chaos.faulty_store import FaultyStore
from tests.support.parameters import others_slow
from tests.support.samples import jpeg, write_tar
from tests.support.web import QuietHandler, served


class Answering(QuietHandler):
    """Sends images; a path that begins with a number gets that status for ever."""

    hanging = threading.Event()

    def do_HEAD(self) -> None:
        status = self.path.strip("/").split("/")[0]
        if status == "hang":
            self.hanging.wait(60)
        body = jpeg()
        self.send_response(int(status) if status.isdecimal() else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"version"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD


class Failing(Answering):
    """Answers everything with 503."""

    def do_HEAD(self) -> None:
        self.path = "/503"
        super().do_HEAD()

    do_GET = do_HEAD


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    availability.forget_stores()
    WebFileSystem.clear_instance_cache()
    monkeypatch.setattr("pipeline.storage.web.TIMEOUT", ClientTimeout(sock_read=1.0))
    monkeypatch.setattr(retries, "PATIENCE", 1.0)
    monkeypatch.setattr("pipeline.plan.lists.LOOK_SECONDS", 1.0)
    monkeypatch.setattr(availability, "PROBE_SECONDS", 1.0)


@pytest.fixture
def web() -> Iterator[str]:
    Answering.hanging.clear()
    with served(Answering) as address:
        yield address
        Answering.hanging.set()


@pytest.fixture
def refusing() -> str:
    """The address of a host on which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a host that takes connections and never answers."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def shards_of(folder: Path, names: list[str], **options: Any) -> list[Shard]:
    (folder / "list.txt").write_text("\n".join(names))
    return list(plan_shards(str(folder / "list.txt"), **options).shards)


def statuses(shards: list[Shard]) -> dict[str, str]:
    rows = [row for shard in shards for row in read_rows(shard, 0)]
    return {row["uri"]: row["status"] for row in rows}


@pytest.mark.slow
def test_entries_that_fail_for_ever_cost_a_row_each(
    web: str, refusing: str, silent: str, tmp_path: Path
) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg())
    unavailable = [
        f"{web}/429/a.jpg",
        f"{web}/500/a.jpg",
        f"{web}/503/a.jpg",
        f"{web}/503/a.tar",
        f"{web}/503/a.parquet",
        f"{web}/hang/a.jpg",
        f"{refusing}/a.jpg",
        f"{refusing}/b.tar",
        f"{silent}/a.jpg",
    ]
    unreadable = [
        "http://no-such-host.invalid/a.jpg",
        "htps://127.0.0.1/a.jpg",
        "ftp://127.0.0.1/a.jpg",
        f"{web}/404/a.jpg",
        f"{web}/501/a.jpg",
    ]
    good = [f"file://{tmp_path}/good.jpg", f"{web}/good.jpg"]
    shards = shards_of(tmp_path, [*unavailable, *unreadable, "http:/x.jpg", *good])
    etags = {member.uri: member.etag for shard in shards for member in shard.members}
    assert {uri for uri in etags if etags[uri] == UNREACHED} == set(unavailable)
    assert statuses(shards) == {
        **dict.fromkeys(unavailable, "unavailable"),
        **dict.fromkeys([*unreadable, f"file://{tmp_path}/http:/x.jpg"], "unreadable"),
        **dict.fromkeys(good, "ok"),
    }


def test_a_store_that_fails_after_planning_costs_rows_while_others_answer(
    web: str, tmp_path: Path
) -> None:
    with served(Answering) as other:
        names = [f"{other}/1.jpg", f"{other}/x.tar", f"{web}/2.jpg"]
        shards = shards_of(tmp_path, names)
    availability.forget_stores()
    found = statuses(shards[::-1])  # an archive that is read first knows of no other store
    assert [found[name] for name in names] == ["unavailable", "unavailable", "ok"]


@pytest.mark.parametrize("name", others_slow(["x.tar", "x.jpg"]))
def test_the_only_store_is_waited_for_and_then_ends_the_run(name: str, tmp_path: Path) -> None:
    with served(Answering) as gone:
        shards = shards_of(tmp_path, [f"{gone}/{name}"])
    availability.forget_stores()
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        statuses(shards)
    with served(Failing) as failing, pytest.raises(StorageUnavailable, match="503"):
        shards_of(tmp_path, [f"{failing}/{name}", f"{failing}/other.jpg"])


@pytest.mark.slow
def test_a_host_that_is_gone_is_not_waited_for_again_and_again(
    web: str, silent: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its thousand entries come first in the list, in shards of their own."""
    names = [f"{silent}/{number}.jpg" for number in range(1000)]
    monkeypatch.setattr("pipeline.plan.lists.LOOKED_UP_TOGETHER", 100)
    began = time.monotonic()
    shards = shards_of(tmp_path, [*names, f"{web}/good.jpg"])
    availability.forget_stores()
    found = statuses(shards)
    assert [found[name] for name in names] == ["unavailable"] * 1000
    assert found[f"{web}/good.jpg"] == "ok"
    assert time.monotonic() - began < 30


def test_labels_outlast_a_night_in_which_their_store_is_gone(
    web: str, refusing: str, tmp_path: Path
) -> None:
    lost, failed, changed = f"{refusing}/1.jpg", f"{refusing}/2.jpg", f"{web}/3.jpg"
    runs = [
        Objects(digest_versions([(lost, "v1"), (changed, "v1")]), labelled=True, of_input=True),
        Objects(digest_versions([(failed, "v1")]), labelled=False, of_input=True),
    ]
    known = consume_into_known(runs, lambda: iter([pa.array([lost, failed, changed])]))
    (tmp_path / "list.txt").write_text("\n".join([lost, failed, changed]))
    plan = plan_shards(str(tmp_path / "list.txt"), known=known)
    members = [member for shard in plan.shards for member in shard.members]
    assert [(one.uri, one.etag) for one in members] == [(failed, UNREACHED), (changed, "version")]
    assert (plan.known, plan.changed, plan.again) == (1, 1, 1)
    assert plan.gone.to_pylist() == []


def test_one_object_of_a_bucket_that_always_fails_costs_its_rows(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fs, path = open_location(bucket, "INPUT")
    write_tar(tmp_path / "b.tar", {"x.jpg": jpeg()})
    for name in ("a.jpg", "b.jpg"):
        fs.pipe_file(f"{path}/{name}", jpeg())
    for name in ("a.tar", "b.tar"):
        fs.pipe_file(f"{path}/{name}", (tmp_path / "b.tar").read_bytes())
    store = FaultyStore(os.environ["AWS_ENDPOINT_URL"])
    with store.running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        type(fs).clear_instance_cache()
        shards = list(plan_shards(bucket).shards)
        store.broken = "/b[.]"
        found = statuses(shards)
        assert found == {
            f"{bucket}/a.jpg": "ok",
            f"{bucket}/b.jpg": "unavailable",
            f"{bucket}/a.tar": "ok",
            f"{bucket}/b.tar": "unavailable",
        }
        store.gone = True
        with pytest.raises(StorageUnavailable):
            statuses(shards)
    type(fs).clear_instance_cache()


def test_an_expired_token_is_a_matter_of_the_whole_store() -> None:
    error = OSError("expired")
    error.__cause__ = ClientError(
        {"Error": {"Code": "ExpiredToken"}, "ResponseMetadata": {"HTTPStatusCode": 400}}, "HEAD"
    )

    def refuse() -> None:
        raise error

    assert not availability._answers("s3://bucket/a.jpg", refuse)


def test_labels_stay_in_a_night_in_which_an_object_cannot_be_had(tmp_path: Path) -> None:
    """A token that has expired, or a file that is gone, gives no failed row in place of labels."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "b.jpg").write_bytes(jpeg(1))
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    members = [m for s in plan_shards(str(tmp_path / "list.txt")).shards for m in s.members]
    versions = digest_versions((member.uri, member.etag) for member in members)
    known = consume_into_known([Objects(versions)], lambda: iter([]))
    (tmp_path / "a.jpg").unlink()
    found = plan_shards(str(tmp_path / "list.txt"), known=known)
    assert (found.known, found.changed, len(found.shards)) == (2, 0, 0)
