"""`label` from and to a real S3 server, and its errors when S3 refuses a request."""

from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.label.label import label
from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.output_writer import OutputWriter
from jobs.output.store import OutputStore
from jobs.output.views import connect
from jobs.report.reports import report_of
from pipeline.storage import retries
from pipeline.storage.files import InputError, open_location
from pipeline.storage.s3 import S3Files
from tests.support.labelling import put_images, tiny_options
from tests.support.s3_server import ADMIN, SECRET

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.slow
def test_a_killed_run_is_resumed_from_its_staging_and_then_only_new_images_are_labelled(
    bucket: str, weights: str
) -> None:
    put_images(f"{bucket}/photos")
    output = f"{bucket}/labels"

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for step in (
        "jobs.label.label.label_images",
        "jobs.label.label.publish_run",
    ):  # first nothing is staged, then everything
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                label(tiny_options(f"{bucket}/photos", output, weights))
    assert label(tiny_options(f"{bucket}/photos", output, weights, page=True)) == 0
    report = report_of(output)
    assert (report["images"], report["labelled_before"]) == (4, 4)
    sql = "SELECT status, count(*) FROM images GROUP BY 1 ORDER BY 1"
    assert connect(output).sql(sql).fetchall() == [("ok", 3), ("undecodable", 1)]
    fs, path = open_location(output, "OUTPUT")
    assert not [name for name in fs.find(path) if "/_staging/" in name]
    assert any(name.endswith("/report.html") for name in fs.find(path))
    photos = f"{path.removesuffix('labels')}photos"
    fs.copy(f"{photos}/deep/er/0.png", f"{photos}/new.png")
    assert label(tiny_options(f"{bucket}/photos", output, weights)) == 0
    newest = "SELECT count(*), count(DISTINCT image_id) FROM images"
    assert connect(output).sql(newest).fetchall() == [(5, 5)]
    with pytest.raises(InputError, match="--relabel"):
        label(tiny_options(f"{bucket}/photos", output, weights, score_threshold=0.5))
    assert main(["report", output]) == 0


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_removed_staging_may_be_deleted(
    bucket: str, weights: str
) -> None:
    """Its staged plan no longer counts then, and all images are labelled again."""
    put_images(f"{bucket}/photos")
    output = f"{bucket}/labels"

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OutputWriter, "drop_staging", interrupt)
        with pytest.raises(KeyboardInterrupt):
            label(tiny_options(f"{bucket}/photos", output, weights))
    (first,) = read_catalog(output).committed_runs()
    assert main(["runs", output, "--delete", first["run_id"], "--yes"]) == 0
    assert label(tiny_options(f"{bucket}/photos", output, weights)) == 0
    (second,) = read_catalog(output).committed_runs()
    assert second["run_id"] != first["run_id"] and second["images"] == first["images"]
    assert not OutputStore(output).names(paths.STAGING)
    assert main(["compact", output]) == 0


@pytest.mark.slow
def test_weights_may_lie_in_a_bucket(bucket: str, weights: str, tmp_path: Path) -> None:
    put_images(f"{bucket}/photos")
    fs, path = open_location(f"{bucket}/tiny.safetensors", "weights")
    fs.put_file(weights, path)
    remote = tiny_options(f"{bucket}/photos", str(tmp_path / "out"), f"{bucket}/tiny.safetensors")
    assert label(remote) == 0
    assert connect(str(tmp_path / "out")).sql("SELECT count(*) FROM images").fetchall() == [(4,)]


@pytest.mark.parametrize(
    ("environment", "source", "output", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "BUCKET/photos", "out", "is forbidden"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "BUCKET/photos", "out", "credent"),
        ({"AWS_ACCESS_KEY_ID": ADMIN}, "s3://no-such-bucket/photos", "out", "does not exist"),
        ({}, "BUCKET/empty", "out", "does not exist"),
        ({}, "BUCKET/photos", "s3://no-such-bucket/out", "s3://no-such-bucket/out"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "BUCKET/photos", "out", "cannot be reached"),
    ],
)
def test_what_s3_refuses_is_one_line_and_exit_code_2(
    environment: dict[str, str],
    source: str,
    output: str,
    message: str,
    bucket: str,
    weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_images(f"{bucket}/photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    S3Files.clear_instance_cache()
    monkeypatch.setattr(retries, "_answered", False)  # as in a process of its own
    monkeypatch.setattr(retries, "PATIENCE", 2.0)
    arguments = [source.replace("BUCKET", bucket), output, "--model", "shapes-tiny"]
    code = main(["label", *arguments, "--weights", weights])
    S3Files.clear_instance_cache()
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1, printed.err
    assert code == 2
    assert SECRET not in printed.out + printed.err
    assert not (tmp_path / "out").exists()
