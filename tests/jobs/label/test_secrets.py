"""A lake of signed addresses, good and broken ones: no secret reaches anything that stays."""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.output.known_objects import read_known_objects
from pipeline.formats.rows import failed_image
from pipeline.plan.digests import digests, find_names, find_positions
from pipeline.plan.plan import plan_shards
from pipeline.plan.shards import tables_of_shards, write_shards
from pipeline.schema import Member, Shard
from tests.support.committed import commit_run, make_target
from tests.support.samples import encoded, jpeg, write_tar
from tests.support.tables import rows
from tests.support.web import FileHandler, served_files

SECRET = "5ecre7"  # a part of every signature, password and token of the lake
# How stores and other servers sign addresses. `{}` stands for the secret.
SIGNATURES = (
    "X-Amz-Credential=A{}&X-Amz-Expires=9&X-Amz-Signature={}",
    "sv=2024&se=2026&sr=b&sp=r&sig={}%2F%3D",
    "q-sign-algorithm=sha1&q-ak={}&q-signature={}&x-cos-security-token={}",
    "OSSAccessKeyId={}&Expires=9&Signature={}",
    "Policy={}&Signature={}&Key-Pair-Id={}",
    "apikey={}",
    "size='big'&access_token={}",
    'size="big")&X-Goog-Signature={}',
)
KINDS = {
    "good.jpg": "ok",
    "text.jpg": "undecodable",
    "empty.jpg": "empty_file",
    "gone.jpg": "unreadable",
    "forbidden.jpg": "unreadable",
    "good.tar": "ok",
    "cut.tar": "corrupt_shard",
    "text.tar": "corrupt_shard",
    "none.tar": "empty_shard",
    "gone.tar": "unreadable",
    "forbidden.tar": "unreadable",
    "good.parquet": "ok",
    "named.parquet": "ok",
    "text.parquet": "corrupt_shard",
    "plain.parquet": "empty_shard",
    "gone.parquet": "unreadable",
    "forbidden.parquet": "unreadable",
}


class Lake(FileHandler):
    """Serves files to requests that carry the secret. Its errors repeat the whole address."""

    def do_GET(self) -> None:
        if "forbidden" in self.path or SECRET not in self.path:
            self.send_error(403, f"no access to http://{self.headers['Host']}{self.path}")
        elif "gone" in self.path:
            self.send_error(404, f"{self.path} with {self.headers['Authorization']} is not there")
        else:
            super().do_GET()

    do_HEAD = do_GET


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[str]:
    """The address of a list of signed addresses, which is signed too."""
    folder = tmp_path / "lake"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(jpeg())
    whole = write_tar(folder / "good.tar", {f"{i}.jpg": jpeg(i) for i in range(2)})
    behind_first = 512 + -(-len(jpeg()) // 512) * 512  # its header, and its content in blocks
    (folder / "cut.tar").write_bytes(whole.read_bytes()[: behind_first + 700])
    with tarfile.open(folder / "none.tar", "w"):
        pass
    pq.write_table(pa.table({"image": [jpeg(3)]}), folder / "good.parquet")
    signed = [f"http://h/{i}.jpg?sig={SECRET}" for i in range(2)]
    pq.write_table(pa.table({"id": signed, "image": [jpeg(4)] * 2}), folder / "named.parquet")
    pq.write_table(pa.table({"size": [1]}), folder / "plain.parquet")
    for suffix in ("jpg", "tar", "parquet"):
        (folder / f"text.{suffix}").write_text(f"no data of http://h/a?token={SECRET}")
    (folder / "empty.jpg").write_bytes(b"")
    with served_files(folder, Lake) as address:
        base = address.replace("//", f"//user:{SECRET}@")
        signatures = [signature.replace("{}", SECRET) for signature in SIGNATURES]
        addresses = [
            f"{base}/{name}?n={number}&{signature}"
            for number, signature in enumerate(signatures)
            for name in KINDS
        ]
        (folder / "list.txt").write_text("\n".join(addresses))
        yield f"{base}/list.txt?{signatures[0]}"


@pytest.mark.slow
def test_failed_rows_of_the_reading_stages_hold_no_secrets(lake: str) -> None:
    found = [row for shard in plan_shards(lake, format="urls").shards for row in encoded(shard)]
    for row in found:
        shown = {name: value for name, value in row.items() if name != "encoded"}
        assert SECRET not in unquote(str(shown))
    statuses: dict[str, set[str]] = {}
    for row in found:
        statuses.setdefault(urlsplit(row["uri"]).path[1:], set()).add(row["status"])
    # The decoder, which comes later, finds that a text is no image.
    expected = {name: {status} for name, status in KINDS.items()} | {"text.jpg": {"ok"}}
    assert statuses == expected | {"cut.tar": {"ok", "corrupt_shard"}}
    assert {row["uri"] for row in found} >= {
        f"http://{urlsplit(lake).netloc.rpartition('@')[2]}/good.tar?n={number}"
        for number in (0, 1, 2, 3, 4, 5)
    }


def test_errors_without_an_address_hold_no_secrets_of_the_image_either() -> None:
    member = Member(f"s3://key:{SECRET}/x@bucket/a.jpg", "", 0)
    row = failed_image(member, "a", "unreadable", f'Invalid bucket name "key:{SECRET}"')
    assert SECRET not in str(row)


def test_names_that_earlier_versions_wrote_with_a_secret_are_known_again(tmp_path: Path) -> None:
    """Earlier versions did not know that `apikey` is secret, so that plans hold it."""
    old = Member(f"https://h/a.jpg?n=1&apikey={SECRET}", "etag", 5)
    run_id = "20260101T000000Z-aaaaaa"
    shards = write_shards(tables_of_shards([Shard("https://h#files-0", "files", (old,))]))
    target = make_target(tmp_path, run_id)
    run = commit_run(target, "https://h/list.txt", [], {"ok": 1})
    shards.write_to(str(tmp_path / run["plan"]))
    known = read_known_objects(str(tmp_path), [run], "https://h/list.txt")
    (position,) = find_positions(digests(["https://h/a.jpg?n=1"]), known.uris)
    assert position == 0
    nothing = known.uris[:, :0]
    assert len(find_names(nothing, known.names)) == 0
    assert find_names(known.uris, known.names).to_pylist() == ["https://h/a.jpg?n=1"]


@pytest.mark.parametrize("secret", [f";jsessionid={SECRET}", f"?sig={SECRET}", f"#token={SECRET}"])
def test_published_plans_hold_no_secrets(secret: str) -> None:
    shard = Shard("https://h#files-0", "files", (Member(f"https://h/a.jpg{secret}", "etag", 5),))
    (published,) = write_shards(tables_of_shards([shard])).without_secrets()
    assert [member.uri for member in published.members] == ["https://h/a.jpg"]


def test_warnings_in_the_log_hold_no_secrets(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import logging; from jobs.cli import main; main(['prices']); "
        "logging.getLogger('pipeline.x').warning('no answer: %s', 'https://u:p@h/a?sig=abc')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert capfd.readouterr().err == "no answer: https://h/a\n"


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_no_file_of_output_holds_a_secret(
    lake: str, tmp_path: Path, weights: str, capfd: pytest.CaptureFixture[str]
) -> None:
    output, page = str(tmp_path / "out"), tmp_path / "page.html"
    options = [
        "--format",
        "urls",
        "--model",
        "shapes-tiny",
        "--weights",
        weights,
        "--device",
        "cpu",
    ]
    assert main(["label", lake, output, *options]) == 0
    failed = len([name for name, status in KINDS.items() if status != "ok"])
    (counts,) = rows(output, "SELECT count(*) FILTER (status <> 'ok'), count(*) FROM images")
    assert counts[0] >= failed * len(SIGNATURES)
    assert main(["label", lake.replace("Expires=9", "Expires=8"), output, *options]) == 0
    assert main(["label", f"{lake}1", output, *options, "--relabel"]) == 0
    for words in (["report", output], ["report", output, "--json"], ["runs", output]):
        assert main(words) == 0
    assert main(["report", output, "--html", str(page)]) == 0
    assert main(["query", output, "SELECT * FROM images"]) == 0
    assert main(["label", f"{lake.replace('list', 'gone')}", output, *options]) == 2
    assert main(["label", f"{lake.replace('list', 'forbidden')}", output, *options, "--debug"]) == 2
    printed = capfd.readouterr()
    assert "forbidden.txt" in printed.err
    assert SECRET not in unquote(printed.out + printed.err)
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} >= {".parquet", ".json", ".html"}
    for file in [*files, page]:
        assert SECRET not in unquote(text_of(file)), file


def text_of(file: Path) -> str:
    """The content of a file as text. Pages of Parquet may be compressed, so they are read."""
    text = file.read_bytes().decode("latin-1")
    return text + str(pq.read_table(file).to_pylist()) if file.suffix == ".parquet" else text
