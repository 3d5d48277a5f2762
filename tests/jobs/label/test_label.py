"""`label` on a real local Ray: once, again, after a kill, and with wrong input."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from jobs.cluster import placement
from jobs.label.label import label
from jobs.label.outcome import print_outcome
from jobs.label.publication import Published
from jobs.output import paths
from jobs.output.catalog import committed_runs
from jobs.output.run_documents import computations
from jobs.report.report import as_text
from jobs.report.reports import report_of
from pipeline import dataflow
from pipeline.plan import shards
from pipeline.storage.files import InputError
from pipeline.storage.lock import OutputLock
from tests.support.labelling import tiny_options
from tests.support.tables import rows
from tests.support.web import served_files

COLUMNS = "image_id, label_id, round(score, 3), round(x_min), round(y_max)"


pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def write_photos(folder: Path) -> Path:
    """Write five images of different sizes, and two files that are not images."""
    folder.mkdir()
    for index, size in enumerate([(60, 80), (90, 70), (64, 64), (120, 50), (70, 90)]):
        pixels = np.random.default_rng(index).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    return folder


@dataclass(frozen=True)
class FirstRun:
    """A run of `label` into an OUTPUT that did not exist."""

    photos: Path
    output: Path
    printed: str
    seconds: float


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, local_ray: None, weights: str) -> FirstRun:
    folder = tmp_path_factory.mktemp("first")
    photos, output = write_photos(folder / "photos"), folder / "the labels"
    printed = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stderr(printed):
        assert label(tiny_options(photos, output, weights)) == 0
    return FirstRun(photos, output, printed.getvalue(), time.perf_counter() - began)


@pytest.fixture
def first_run(whole_run: FirstRun) -> Iterator[FirstRun]:
    """A first run whose INPUT and OUTPUT a test may add to: OUTPUT is a copy within INPUT."""
    before = set(whole_run.photos.iterdir())
    output = whole_run.photos / "labels [1] *"
    yield replace(whole_run, output=shutil.copytree(whole_run.output, output))
    shutil.rmtree(output)
    for added in set(whole_run.photos.iterdir()) - before:
        added.unlink()


def test_a_run_without_any_box_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_outcome("out", Published(Counter(ok=3)), 0.0) == 0
    printed = capsys.readouterr().err
    assert "3 images labelled with 0 boxes, 0 failed" in printed
    assert "no box reached the threshold" in printed and "what failed" not in printed
    assert print_outcome("out", Published(Counter(ok=3, truncated=1), 7), 1.0) == 0
    printed = capsys.readouterr().err
    assert "no box" not in printed
    assert 'what failed: detr-batch query out "SELECT image_id, status, error' in printed


def test_a_first_run_labels_all_images(whole_run: FirstRun) -> None:
    output = whole_run.output
    parts = report_of(str(output))["startup_parts"]
    assert list(parts) == ["weights", "catalogue", "listing", "ray", "first block"]
    assert min(parts.values()) > 0 and sum(parts.values()) < whole_run.seconds
    assert "5 images labelled with 500 boxes, 2 failed" in whole_run.printed
    assert f"`detr-batch report '{output}'`" in whole_run.printed
    statuses = dict(rows(output, "SELECT status, count(*) FROM images GROUP BY 1"))
    assert statuses == {"ok": 5, "empty_file": 1, "undecodable": 1}
    assert rows(output, "SELECT count(*) FROM detections") == [(500,)]
    assert not (output / "_staging").exists() or not list((output / "_staging").iterdir())
    assert main(["report", str(output)]) == 0
    assert main(["query", str(output), "SELECT count(*) FROM images"]) == 0


@pytest.mark.slow
def test_a_second_run_labels_only_new_images(
    first_run: FirstRun, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """OUTPUT lies within INPUT and has wildcards in its name. The second run computes in bf16."""
    photos, output = first_run.photos, first_run.output
    assert label(tiny_options(photos, output, weights)) == 0  # nothing new: no second run
    assert rows(output, "SELECT count(*) FROM images") == [(7,)]
    shutil.copy(photos / "0.png", photos / "new.png")
    capsys.readouterr()
    assert label(tiny_options(photos, output, weights, precision="bf16")) == 0
    said = capsys.readouterr().err
    assert "holds labels that were computed in fp32 on cpu (" in said
    assert "these are in bf16 on cpu (" in said and "last digits" in said
    assert label(tiny_options(photos, output, weights)) == 0  # nothing new
    assert "last digits" not in capsys.readouterr().err
    (first,), (second,) = (
        computations(str(output), run["run_id"]) for run in committed_runs(str(output))
    )
    assert [first[:11], second[:11]] == ["fp32 on cpu", "bf16 on cpu"]
    assert f"computed in    {second}: 1 image\n" in as_text(report_of(str(output)))
    assert rows(output, "SELECT count(*), count(DISTINCT image_id) FROM images") == [(8, 8)]
    assert not list((output / "_staging").iterdir())
    with pytest.raises(InputError, match="--relabel"):
        label(tiny_options(photos, output, "random"))
    assert main(["report", str(output)]) == 0
    assert main(["query", str(output), "SELECT count(*) FROM images"]) == 0


@pytest.mark.slow
def test_detectors_give_the_same_labels_with_two_calls_at_once(
    photos: Path, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detectors on GPUs take two calls at once."""
    for path in list(photos.glob("*.png")):
        for copy in range(5):
            shutil.copy(path, photos / f"{path.stem}-{copy}.png")
    monkeypatch.setattr(dataflow, "CPU_BLOCK_BYTES", 1 << 16)
    for calls in (1, 2):
        monkeypatch.setattr(placement, "CPU_CALLS", calls)
        assert label(tiny_options(photos, tmp_path / f"by {calls}", weights, batch_size=1)) == 0
    one, two = (
        rows(tmp_path / f"by {calls}", f"SELECT {COLUMNS} FROM detections ORDER BY ALL")
        for calls in (1, 2)
    )
    assert len(one) == 3000 and one == two


@pytest.mark.slow
def test_a_killed_run_is_resumed_and_gives_the_same_labels(
    photos: Path, tmp_path: Path, weights: str
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert label(tiny_options(photos, calm, weights)) == 0
    command = [sys.executable, "-m", "jobs.cli", "label", str(photos), str(killed), "--no-page"]
    command += ["--model", "shapes-tiny", "--weights", weights, "--score-threshold", "0"]
    command += ["--precision", "fp32"]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(killed.glob("_staging/*/plan.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(killed.glob("_runs/*/manifest*.json"))
    with pytest.raises(InputError, match="lease"):
        label(tiny_options(photos, killed, weights))
    (killed / paths.LOCK).unlink()  # instead of a wait of a minute
    assert label(tiny_options(photos, killed, weights)) == 0
    sql = f"SELECT {COLUMNS} FROM detections ORDER BY ALL"
    assert rows(calm, sql) == rows(killed, sql)


@pytest.mark.slow
def test_a_run_that_ended_before_publishing_counts_the_images_that_it_labelled(
    photos: Path, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First OUTPUT fails, which gives one line, and then the run is killed."""

    def raise_no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("jobs.label.label.publish_run", raise_no_space)
        with pytest.raises(RuntimeError, match=r"the disk is full.*run the same command again"):
            label(tiny_options(photos, output, weights))
    kill_before_publishing(source=photos, output=output, weights=weights)
    assert label(tiny_options(photos, output, weights, max_failed_fraction=0.2)) == 3
    report = report_of(str(output))
    assert report["failed"] == {"empty_file": 1, "undecodable": 1}
    figures = [report[name] for name in ("images", "ok", "labelled_before", "detections")]
    assert figures == [7, 5, 7, 500]
    assert list(report["startup_parts"]) == ["weights", "catalogue", "ray"]


def kill_before_publishing(**options: Any) -> None:
    """Interrupt `label` when all images are labelled and nothing is published."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.label.label.publish_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            label(tiny_options(**options))


@pytest.mark.slow
def test_tasks_that_read_several_shards_leave_out_finished_images(
    photos: Path, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans of tens of thousands of shards have such tasks."""
    lake = tmp_path / "lake"
    lake.mkdir()
    for number in range(9):
        with tarfile.open(lake / f"{number}.tar", "w") as archive:
            archive.add(photos, "photos")
    assert label(tiny_options(lake, tmp_path / "calm", weights)) == 0
    monkeypatch.setattr(shards, "GROUP_SHARE", 1)
    monkeypatch.setattr(dataflow, "FILES_PER_TASK", 2)
    output = tmp_path / "out"
    kill_before_publishing(source=lake, output=output, weights=weights)
    (plan,) = output.glob("_staging/*/plan.parquet")
    assert pq.read_metadata(plan).num_row_groups == 5  # of 1, 1, 2, 4 and 1 shards
    blocks = sorted(output.glob("_staging/*/blocks/*"))
    for block in blocks[::2]:
        block.unlink()
    staged = sum(pq.read_metadata(block).num_rows for block in blocks[1::2])
    assert label(tiny_options(lake, output, weights)) == 0
    report = report_of(str(output))
    assert report["labelled_before"] == staged
    assert list(report["startup_parts"]) == ["weights", "catalogue", "ray", "first block"]
    sql = f"SELECT {COLUMNS} FROM detections ORDER BY ALL"
    assert rows(tmp_path / "calm", sql) == rows(output, sql)
    assert rows(output, "SELECT count(*) FROM images") == [(63,)]


@pytest.mark.slow
def test_only_the_same_command_resumes_a_run_and_new_images_follow(
    photos: Path, tmp_path: Path, weights: str
) -> None:
    output = tmp_path / "out"
    kill_before_publishing(source=photos, output=output, weights=weights, limit=2)
    with pytest.raises(InputError, match=r"unfinished run.*--limit 2"):
        label(tiny_options(photos, output, weights))
    assert label(tiny_options(photos, output, weights, limit=2)) == 0
    assert rows(output, "SELECT count(*) FROM images") == [(2,)]
    kill_before_publishing(source=photos, output=output, weights=weights)
    shutil.copy(photos / "0.png", photos / "new.png")
    assert label(tiny_options(photos, output, weights)) == 0
    assert rows(output, "SELECT count(*), count(DISTINCT image_id) FROM images") == [(8, 8)]
    parts = report_of(str(output))["startup_parts"]  # of the new run only
    assert list(parts) == ["catalogue", "listing", "ray", "first block"]


@pytest.mark.slow
def test_relabel_replaces_the_labels(first_run: FirstRun, tmp_path: Path, weights: str) -> None:
    photos, output = first_run.photos, first_run.output
    kill_before_publishing(source=photos, output=output, weights="random", relabel=True)
    assert rows(output, "SELECT DISTINCT count(*) FROM images GROUP BY model_fingerprint") == [(7,)]
    other = f"{photos}/../photos"  # another spelling of the same INPUT
    assert label(tiny_options(other, output, "random", relabel=True)) == 0
    assert label(tiny_options(photos, output, "random")) == 0  # nothing new
    assert rows(output, "SELECT count(*), count(DISTINCT image_id) FROM images") == [(7, 7)]
    assert len(list(output.glob("images/*/*.parquet"))) == 1
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(photos / "0.png", more / "0.png")
    with pytest.raises(InputError, match="holds labels of"):
        label(tiny_options(more, output, weights, relabel=True))


def test_mistakes_in_a_query_are_one_line_and_exit_code_2(
    whole_run: FirstRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for sql in ("SELEC 1", "SELECT image_id::INT FROM images"):
        capsys.readouterr()
        assert main(["query", str(whole_run.output), sql]) == 2
        assert capsys.readouterr().err.startswith("detr-batch: ")


@pytest.mark.slow
def test_secrets_of_urls_reach_no_artefact(
    photos: Path, tmp_path: Path, weights: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The list holds signed addresses that work and signed addresses that fail."""
    secret = "5ecre7"
    names = ["0.png", "1.png", "text.jpg", "gone.jpg"]
    query = f"X-Amz-Signature={secret}"
    output = tmp_path / "out"
    with served_files(photos) as address:
        base = address.replace("//", f"//user:{secret}@")
        (tmp_path / "list.txt").write_text("\n".join(f"{base}/{n}?{query}" for n in names))
        assert label(tiny_options(tmp_path / "list.txt", output, weights, page=True)) == 0
        signed_again = (tmp_path / "list.txt").read_text().replace(query, f"{query}&X-Amz-Date=1")
        (tmp_path / "list.txt").write_text(signed_again)
        assert label(tiny_options(tmp_path / "list.txt", output, weights)) == 0  # nothing new
    (images,) = rows(output, "SELECT count(*), count(DISTINCT image_id) FROM images")
    assert images == (4, 4)
    printed = capfd.readouterr()
    assert secret not in printed.out + printed.err
    for file in output.rglob("*"):
        if file.suffix == ".parquet":
            assert secret not in str(pq.read_table(file).to_pylist()), file
        elif file.is_file():
            assert secret not in file.read_text(), file


@pytest.mark.slow
def test_an_archive_that_limit_cut_short_does_not_count_as_complete(
    photos: Path, tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is the run a success, as its first images are none."""
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in ("empty.jpg", "text.jpg", "0.png"):
            archive.add(photos / name, name)
    output = tmp_path / "out"
    assert label(tiny_options(tmp_path / "photos.tar", output, weights, limit=2)) == 3
    assert "2 of 2 images failed: nothing was labelled" in capsys.readouterr().err
    assert rows(output, "SELECT count(*) FROM images") == [(2,)]
    with pytest.raises(InputError, match="--limit"):
        label(tiny_options(tmp_path / "photos.tar", output, weights))


def test_second_writer_is_refused(photos: Path, tmp_path: Path, weights: str) -> None:
    with (
        OutputLock(str(tmp_path / "out"), paths.LOCK),
        pytest.raises(InputError, match="being written by"),
    ):
        label(tiny_options(photos, tmp_path / "out", weights))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "does not exist"),
        # OUTPUT is checked before weights are looked for, which takes long without a network.
        (["photos", "gopher://x", "--weights", "absent.pth"], "gopher://x cannot be opened"),
        (["photos", "out", "--model", "yolo"], "unknown model"),
        (["photos", "out", "--score-threshold", "2"], "--score-threshold"),
        (["photos", "out", "--limit", "0"], "--limit must be at least 1"),
        (["photos", "out", "--relabel", "--limit", "1"], "would drop the labels of all other"),
        (["photos", "out", "--weights", "nowhere.pth"], "no weights at"),
        (["photos", "out", "--model", "deformable-detr", "--weights", "tiny"], "does not fit"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    photos: Path,
    tmp_path: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    completed = [weights if argument == "tiny" else argument for argument in arguments]
    if "--weights" not in completed:
        completed += ["--weights", weights]
    if "--model" not in completed:
        completed += ["--model", "shapes-tiny"]
    assert main(["label", *completed]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "_runs").exists()
