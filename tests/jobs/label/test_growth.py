"""A bucket that grows: known objects are not read again; changed and removed ones are found."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from jobs.compact import compact
from jobs.label.fingerprint import fingerprint
from jobs.output.catalog import committed_runs
from jobs.output.views import connect
from jobs.report.reports import report_of
from model.named import PACKAGED, named_model
from model.weights import file_sha256
from pipeline.plan.shards import PLAN
from tests.support.listed_store import run_listing_server
from tests.support.samples import jpeg, write_jpegs

KNOWN, NEW = 1_000_000, 1_000


def key(index: int) -> str:
    return f"photos/2026/album-{index // 500:05d}/IMG_{index:08d}.jpg"


def etag(index: int) -> str:
    return f"{index:032x}"


def serve(pipe: Connection, count: int) -> None:
    with run_listing_server(count, key, etag) as url:
        pipe.send(url)
        pipe.recv()


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """The environment of a store, which is a process, and whose bucket has KNOWN + NEW objects."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(theirs, KNOWN + NEW), daemon=True)
    process.start()
    yield {
        "AWS_ENDPOINT_URL": ours.recv(),
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    ours.send(None)
    process.join()


def write_known(output: Path) -> None:
    """Write an OUTPUT whose one run labelled KNOWN objects; its tables are empty."""
    members = pa.StructArray.from_arrays(
        [
            pa.array([f"s3://lake/{key(i)}" for i in range(KNOWN)]),
            pa.array([etag(i) for i in range(KNOWN)]),
            pa.array([150_000] * KNOWN),
        ],
        ["uri", "etag", "size"],
    )
    per_shard = 256
    shards = -(-KNOWN // per_shard)
    offsets = pa.array([*range(0, KNOWN, per_shard), KNOWN], pa.int32())
    plan = pa.table(
        [
            pa.array([f"s3://lake/photos#files-{i:05d}" for i in range(shards)]),
            pa.array(["files"] * shards),
            pa.ListArray.from_arrays(offsets, members).cast(PLAN.field("members").type),
            *(pa.nulls(shards, field.type) for field in list(PLAN)[3:]),
        ],
        schema=PLAN,
    )
    folder = output / "_runs" / "20261124T020000Z-000000"
    folder.mkdir(parents=True)
    pq.write_table(plan, folder / "plan.parquet")
    config = named_model("shapes-tiny").config()
    manifest = {
        "run_id": folder.name,
        "input": "s3://lake/photos",
        "model": "shapes-tiny",
        "model_fingerprint": fingerprint(asdict(config), file_sha256(PACKAGED), 0.3),
        "images": {"ok": KNOWN},
        "files": [],
        "replaces": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "report.json").write_text("{}")  # as of a version whose reports allow no estimate


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_nightly_runs_add_new_images_replace_changed_ones_and_report_removed_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, output = tmp_path / "photos", str(tmp_path / "labels")
    photos.mkdir()
    command = [
        "label",
        str(photos),
        output,
        "--model",
        "shapes-tiny",
        "--usd-per-hour",
        "3.6",
        "--no-page",
    ]
    write_jpegs(photos, "abc")
    old = (photos / "b.jpg").stat()
    assert main(command) == 0

    Image.new("RGB", (80, 60)).save(photos / "b.jpg")
    (photos / "c.jpg").unlink()
    (photos / "d.jpg").write_bytes(jpeg(4))
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "known          1 object " in printed
    assert "changed        1 object " in printed
    assert "gone           1 object " in printed
    assert "(by the last run)" in printed
    assert main(command) == 0
    assert "these labels stay" in (errors := capsys.readouterr().err)
    assert "c.jpg" in errors

    first, second = committed_runs(output)
    assert second["images"] == {"ok": 2}  # only b and d
    (gone,) = pq.read_table(Path(output, "_runs", second["run_id"], "gone.parquet")).to_pylist()
    assert gone["uri"].endswith("c.jpg")
    with connect(output) as connection:
        newest = "SELECT uri[-5:], width, run FROM latest_images ORDER BY uri"
        assert connection.sql(newest).fetchall() == [
            ("a.jpg", 120, first["run_id"]),
            ("b.jpg", 80, second["run_id"]),
            ("c.jpg", 120, first["run_id"]),
            ("d.jpg", 120, second["run_id"]),
        ]
    assert report_of(output)["estimate"]["runs"] == 1

    # b.jpg has the version of the first night again, so it is labelled again.
    (photos / "b.jpg").write_bytes(jpeg(ord("b")))
    os.utime(photos / "b.jpg", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert main(command) == 0
    with connect(output) as connection:
        widths = connection.sql("SELECT width FROM latest_images WHERE uri LIKE '%b.jpg'")
        assert widths.fetchall() == [(120,)]
    assert len(compact(output)) == 1
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing new" in capsys.readouterr().out


def plan_and_measure(
    source: str, output: Path, environment: dict[str, str]
) -> tuple[str, float, float]:
    """Run `label --dry-run`; return its text, CPU seconds, and the peak MiB of children so far."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "jobs.cli", "label", source, str(output), "--dry-run"]
    command += ["--probe", "0"]
    done = subprocess.run(
        [*command, "--model", "shapes-tiny"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, seconds, after.ru_maxrss / 1024


@pytest.mark.slow
@pytest.mark.measures
def test_a_night_over_a_million_known_objects_takes_a_minute_and_half_a_gibibyte(
    bucket: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg())
    _, _, least = plan_and_measure(
        str(tmp_path / "photos"), tmp_path / "none", {}
    )  # torch and Ray only
    write_known(tmp_path / "labels")
    began = time.monotonic()
    printed, seconds, peak = plan_and_measure("s3://lake/photos", tmp_path / "labels", bucket)
    print(f"{time.monotonic() - began:.1f} s, {seconds:.1f} of a CPU; {peak:.0f} MiB, {least:.0f}")
    assert f"{NEW} in 4 shards" in printed
    assert f"{KNOWN} objects that OUTPUT holds already" in printed
    assert peak - least < 512
    assert seconds < 60
