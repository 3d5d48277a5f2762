"""Public buckets are read without credentials, and requesters say that they pay."""

import os
from collections.abc import Iterator

import pytest

from pipeline.formats.read import read_rows
from pipeline.plan.plan import plan_shards
from pipeline.storage.access import ANONYMOUS, REQUESTER_PAYS, access_options, use_input_access
from pipeline.storage.files import InputError, open_location, read_object
from pipeline.storage.s3 import S3Files
from tests.support.s3_server import ADMIN, PUBLIC, SECRET
from tests.support.samples import jpeg
from tests.support.web import QuietHandler, served

LISTING = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>paid</Name>
<KeyCount>1</KeyCount><IsTruncated>false</IsTruncated><Contents><Key>a.jpg</Key>
<ETag>"1"</ETag><Size>%d</Size></Contents></ListBucketResult>"""


@pytest.fixture(autouse=True)
def usual_access() -> Iterator[None]:
    yield
    use_input_access(None)
    S3Files.clear_instance_cache()


@pytest.fixture
def public(s3: None) -> str:
    """A bucket with an image, which everybody may read."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    fs = S3Files(key=ADMIN, secret=SECRET, endpoint_url=endpoint, skip_instance_cache=True)
    if not fs.exists(PUBLIC):
        fs.mkdir(PUBLIC)
    fs.pipe_file(f"{PUBLIC}/a.jpg", jpeg())
    return f"s3://{PUBLIC}"


def test_a_public_bucket_is_read_without_credentials(
    public: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, path = open_location(f"{bucket}/b.jpg", "OUTPUT")
    fs.pipe_file(path, b"with credentials")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    S3Files.clear_instance_cache()
    with pytest.raises(InputError, match="forbidden"):
        plan_shards(public)
    (shard,) = plan_shards(public, access=ANONYMOUS).shards
    assert [row["encoded"] for row in read_rows(shard, 0)] == [jpeg()]
    monkeypatch.undo()
    S3Files.clear_instance_cache()
    with pytest.raises(PermissionError):
        read_object(*open_location(f"{bucket}/b.jpg", "INPUT"))
    use_input_access(ANONYMOUS, output=f"{bucket}/labels")
    assert read_object(*open_location(f"{bucket}/b.jpg", "OUTPUT")) == b"with credentials"


class PaidBucket(QuietHandler):
    """A bucket that refuses those who do not pay, as S3 does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        is_head_bucket = self.command == "HEAD" and self.path.strip("/") == "paid"
        pays = is_head_bucket or self.headers["x-amz-request-payer"] == "requester"
        content = LISTING % len(jpeg()) if "list-type=2" in self.path else jpeg()
        self.send_response(200 if pays else 403)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(content) if pays else 0))
        self.end_headers()
        if pays and self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET


def test_requesters_say_that_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(PaidBucket) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        S3Files.clear_instance_cache()
        with pytest.raises(InputError, match="forbidden"):
            plan_shards("s3://paid")
        (shard,) = plan_shards("s3://paid", access=REQUESTER_PAYS).shards
        assert [row["encoded"] for row in read_rows(shard, 0)] == [jpeg()]


@pytest.mark.parametrize(
    ("url", "anonymous", "pays"),
    [
        ("s3://b/k", {"anon": True}, {"requester_pays": True}),
        ("gs://b/k", {"token": "anon"}, {"requester_pays": True}),
        ("abfs://c@a/k", {"anon": True}, None),
        ("hf://datasets/u/r", {"token": False}, None),
        ("https://h/k", {}, {}),
        ("/k", {}, {}),
    ],
)
def test_options_of_each_store(
    url: str, anonymous: dict[str, object], pays: dict[str, object] | None
) -> None:
    assert access_options(url) == {}
    use_input_access(ANONYMOUS)
    assert access_options(url) == anonymous
    use_input_access(REQUESTER_PAYS)
    if pays is None:
        with pytest.raises(InputError, match="is for s3:// and gs://"):
            access_options(url)
    else:
        assert access_options(url) == pays
