"""No command writes a file of the user's over a table or a commit of OUTPUT."""

from pathlib import Path

import pytest

from jobs.cli import main
from jobs.output import paths
from tests.support.labelled import Labelled, write_run
from tests.support.nights import NIGHTS, write_nights

OWN = [
    paths.entry(1),
    paths.OLD_LOCK,
    f"_runs/{NIGHTS[0]}/x.json",
    "images/x.json",
    "_staging/x.json",
]


@pytest.mark.parametrize("through_link", [False, True])
@pytest.mark.parametrize("name", [*OWN, "detections/run=a/x.json"])
def test_files_of_output_are_not_written_over(
    name: str, through_link: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "labels"
    write_nights(output)
    (tmp_path / "link").symlink_to(output)
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    file = str((tmp_path / "link" if through_link else output) / name)
    for words in (
        ["query", str(output), "SELECT 1", "--out", file],
        ["report", str(output), "--html", file],
        ["compare", str(output), str(output), "--html", file],
        ["export", str(output), file, "--to", "csv", "--overwrite"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "give another" in said, said
    after = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.parametrize("name", ["", "labels"])
def test_output_is_not_written_over(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is the folder of OUTPUT, or one that holds it."""
    write_nights(tmp_path / "labels")
    for words in (
        [
            "query",
            str(tmp_path / "labels"),
            "SELECT 1",
            "--out",
            str(tmp_path / name),
            "--format",
            "csv",
        ],
        ["report", str(tmp_path / "labels"), "--html", str(tmp_path / name)],
        ["export", str(tmp_path / "labels"), str(tmp_path / name), "--to", "csv", "--overwrite"],
    ):
        assert main(words) == 2
        assert "or holds it: give another place" in capsys.readouterr().err


def test_other_files_beside_the_tables_may_be_written(tmp_path: Path) -> None:
    output = tmp_path / "labels"
    write_nights(output)
    assert main(["query", str(output), "SELECT 1 AS a", "--out", str(output / "answer.csv")]) == 0
    assert (output / "answer.csv").read_text() == "a\n1\n"


@pytest.mark.slow
def test_a_page_replaces_pages_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, page, photo = (str(tmp_path / name) for name in ("out", "page.html", "photo.png"))
    write_run(output, [Labelled("file:///x.jpg")], ("", "cat"))
    Path(photo).write_bytes(b"a photo")
    (tmp_path / "link.html").symlink_to(photo)
    command = ["compare", output, output]
    for file in (photo, str(tmp_path / "link.html"), str(tmp_path)):
        assert main([*command, "--html", file]) == 2
        assert "give a" in capsys.readouterr().err
    assert Path(photo).read_bytes() == b"a photo"
    (tmp_path / "linked.html").symlink_to(page)
    for file in (page, page, str(tmp_path / "linked.html")):  # a nightly page is replaced
        assert main([*command, "--html", file]) == 0
    assert (tmp_path / "linked.html").is_symlink()
    assert "<title>detr-batch" in Path(page).read_text()
