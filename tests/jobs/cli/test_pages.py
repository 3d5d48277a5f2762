"""Pages are written to paths and into stores, and never in the place of anything else."""

from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.storage.files import open_location, read_object
from tests.support.labelled import Labelled, write_run

LABELS = ("", "circle")


@pytest.fixture
def output(tmp_path: Path) -> str:
    return write_run(tmp_path / "out", [Labelled("in/1.jpg", [(1, 0.9, 0, 0, 9, 9)])], LABELS)


def compare(output: str, page: str) -> int:
    return main(["compare", output, output, "--html", page])


def test_a_page_is_written_into_a_bucket_and_again(
    output: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = f"{bucket}/pages/page.html"
    for _ in range(2):
        assert compare(output, page) == 0
        assert f"written to {page}\n" in capsys.readouterr().err
        assert b"<title>detr-batch" in read_object(*open_location(page, "page"))


@pytest.mark.parametrize("command", ["compare", "report"])
def test_other_objects_and_folders_of_a_bucket_stay(
    command: str, output: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fs, path = open_location(f"{bucket}/pages/notes.txt", "page")
    fs.pipe_file(path, b"mine")
    words = [command, *[output] * (2 if command == "compare" else 1), "--html"]
    for page, why in (
        (f"{bucket}/pages/notes.txt", "is no page of detr-batch: give another file"),
        (f"{bucket}/pages", "is a folder: give a file"),
        (f"{bucket}/pages/", "is a folder: give a file"),
        ("https://host/page.html", "web addresses cannot be written to; give s3:// or a path"),
        ("s3:/lake/r.html", "write two slashes behind the colon"),
    ):
        assert main([*words, page]) == 2
        said = capsys.readouterr().err
        assert why in said and said.count("\n") == 1
    assert read_object(fs, path) == b"mine"


def test_a_page_at_a_file_url_is_a_local_file(output: str, tmp_path: Path) -> None:
    assert compare(output, (tmp_path / "page.html").as_uri()) == 0
    assert "<title>detr-batch" in (tmp_path / "page.html").read_text()
