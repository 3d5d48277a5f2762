"""`export --overwrite` deletes what an earlier export wrote, and nothing else."""

import os
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.storage.files import open_location
from tests.jobs.exports.lake import by_image_id, label_by_hand, write_labelled_lake, write_lake
from tests.support.labelled import LABELS, SOURCE, Labelled, random_boxes, write_run

HEADER = "file,picture,image_id,shard,width,height\r\n"  # of each version so far
ALBUM = [Labelled(f"{SOURCE}/{name}.jpg", random_boxes(1, 2)) for name in ("a", "b")]
ENTRIES = {"yolo": "labels", "voc": "Annotations"}


def export(output: object, file: object, *options: str) -> int:
    return main(["export", str(output), str(file), *options])


def content(folder: Path) -> dict[str, bytes | str]:
    """The bytes of each file below a folder, and where each link leads."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("table", ["name,license\n", HEADER])
@pytest.mark.parametrize("to", ENTRIES)
@pytest.mark.parametrize("place", ["{}", "{}/deep", "elsewhere"])
def test_output_is_not_replaced(
    place: str, to: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OUTPUT is an entry of FILE, lies in one, or an entry is a link to it."""
    output = tmp_path / "proj" / place.format(ENTRIES[to])
    write_run(output, ALBUM, LABELS)
    if place == "elsewhere":
        (tmp_path / "proj" / ENTRIES[to]).symlink_to(output)
    (tmp_path / "proj/images.csv").write_text(table)
    before = content(tmp_path)
    assert export(output, tmp_path / "proj", "--to", to, "--overwrite") == 2
    assert "give another" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_output_in_a_bucket_is_not_replaced(
    bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(f"{bucket}/proj/labels", ALBUM, LABELS)
    fs, path = open_location(f"{bucket}/proj", "FILE")
    fs.pipe_file(f"{path}/images.csv", HEADER.encode())
    before = fs.find(path)
    options = ("--to", "yolo", "--overwrite")
    assert export(f"{bucket}/proj/labels", f"{bucket}/proj", *options) == 2
    assert f"is the OUTPUT {bucket}/proj/labels, or holds it" in capsys.readouterr().err
    assert fs.find(path) == before


@pytest.mark.parametrize("to", ENTRIES)
@pytest.mark.parametrize("link", [False, True])
def test_files_of_a_user_among_the_labels_are_not_deleted(
    to: str, link: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "out", ALBUM, LABELS)
    assert export(tmp_path / "out", tmp_path / "made", "--to", to) == 0
    mine = tmp_path / "made" / ENTRIES[to] / "truth.txt"
    if link:
        (tmp_path / "truth").mkdir()
        mine.symlink_to(tmp_path / "truth")
    else:
        mine.write_text("mine")
    before = content(tmp_path)
    assert export(tmp_path / "out", tmp_path / "made", "--to", to, "--overwrite") == 2
    said = capsys.readouterr().err
    assert f"holds {ENTRIES[to]}/truth.txt, which its images.csv does not list" in said
    assert content(tmp_path) == before


def test_files_of_a_user_in_a_bucket_are_not_deleted(
    bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(f"{bucket}/out", ALBUM, LABELS)
    assert export(f"{bucket}/out", f"{bucket}/made", "--to", "yolo") == 0
    fs, path = open_location(f"{bucket}/made", "FILE")
    fs.pipe_file(f"{path}/labels/truth.txt", b"mine")
    before = fs.find(path)
    assert export(f"{bucket}/out", f"{bucket}/made", "--to", "yolo", "--overwrite") == 2
    assert "holds labels/truth.txt" in capsys.readouterr().err
    assert fs.find(path) == before


def test_a_table_of_a_user_is_no_mark_of_an_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "out", ALBUM, LABELS)
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj/images.csv").write_text("name,license\na.png,mine\n")
    assert export(tmp_path / "out", tmp_path / "proj", "--to", "yolo", "--overwrite") == 2
    assert "is a folder that no export wrote" in capsys.readouterr().err
    assert list(content(tmp_path / "proj")) == ["images.csv"]


def test_the_table_of_another_format_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "out", ALBUM, LABELS)
    assert export(tmp_path / "out", tmp_path / "made", "--to", "yolo") == 0
    assert export(tmp_path / "out", tmp_path / "made", "--to", "voc", "--overwrite") == 2
    assert "is an export to another format" in capsys.readouterr().err


def test_an_export_with_fewer_images_leaves_no_old_files(tmp_path: Path) -> None:
    write_run(tmp_path / "out", ALBUM, LABELS)
    write_run(tmp_path / "fewer", ALBUM[:1], LABELS)
    for output in ("out", "fewer"):
        assert export(tmp_path / output, tmp_path / "made", "--to", "yolo", "--overwrite") == 0
    assert [path.name for path in (tmp_path / "made/labels").rglob("*.*")] == ["a.txt"]


@pytest.mark.parametrize("option", ["--link-images", "--with-images", ""])
@pytest.mark.parametrize("spelled", ["made/images", "link"])
def test_images_that_are_exported_are_not_deleted(
    spelled: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """INPUT is the folder of images of an earlier export, and FILE is that export."""
    write_labelled_lake(tmp_path)
    assert export(tmp_path / "out", tmp_path / "made", "--to", "yolo", "--with-images") == 0
    (tmp_path / "link").symlink_to("made/images")
    picture = next(iter(by_image_id(tmp_path / "made").values()))["picture"]
    image = Labelled(f"file://{tmp_path}/{spelled}/{picture}", random_boxes(1, 2))
    write_run(tmp_path / "again", [image], LABELS, source=f"file://{tmp_path}/{spelled}")
    before = content(tmp_path)
    options = ["--to", "yolo", "--overwrite", *filter(None, [option])]
    assert export(tmp_path / "again", tmp_path / "made", *options) == 2
    assert f"{picture} of OUTPUT lies in" in capsys.readouterr().err
    assert content(tmp_path) == before


@pytest.mark.slow
def test_images_in_a_bucket_that_are_exported_are_not_deleted(
    bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lake(f"{bucket}/lake")
    label_by_hand(f"{bucket}/out", f"{bucket}/lake")
    assert export(f"{bucket}/out", f"{bucket}/made", "--to", "yolo", "--with-images") == 0
    image = Labelled(f"{bucket}/made/images/a.jpg", random_boxes(1, 2))
    write_run(f"{bucket}/again", [image], LABELS, source=f"{bucket}/made/images")
    assert export(f"{bucket}/again", f"{bucket}/made", "--to", "yolo", "--overwrite") == 2
    assert "a.jpg of OUTPUT lies in" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--link-images", "--with-images", ""])
def test_images_of_a_user_beside_those_of_an_export_are_not_deleted(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_labelled_lake(tmp_path)
    assert export(tmp_path / "out", tmp_path / "made", "--to", "voc", "--link-images") == 0
    (tmp_path / "made/JPEGImages/mine.jpg").write_bytes(b"mine")
    before = content(tmp_path)
    options = ["--to", "voc", "--overwrite", *filter(None, [option])]
    assert export(tmp_path / "out", tmp_path / "made", *options) == 2
    assert "holds JPEGImages/mine.jpg" in capsys.readouterr().err
    assert content(tmp_path) == before


@pytest.mark.parametrize("to", ENTRIES)
def test_links_to_folders_are_followed(to: str, tmp_path: Path) -> None:
    """FILE is a link to an empty folder, to none, and to an export."""
    write_run(tmp_path / "out", ALBUM, LABELS)
    (tmp_path / "empty").mkdir()
    for target in ("empty", "new"):
        (tmp_path / f"to-{target}").symlink_to(target)
        assert export(tmp_path / "out", tmp_path / f"to-{target}", "--to", to) == 0
        assert export(tmp_path / "out", tmp_path / f"to-{target}", "--to", to) == 2
        assert export(tmp_path / "out", tmp_path / f"to-{target}", "--to", to, "--overwrite") == 0
        assert (tmp_path / f"to-{target}").is_symlink()
        assert len(list((tmp_path / target / ENTRIES[to]).rglob("*.*"))) == 2
        assert not list((tmp_path / target).glob(".*"))


def test_a_link_to_a_file_stays(tmp_path: Path) -> None:
    write_run(tmp_path / "out", ALBUM, LABELS)
    (tmp_path / "link").symlink_to("labels.csv")
    assert export(tmp_path / "out", tmp_path / "link", "--to", "csv") == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "labels.csv").exists()


def test_a_link_to_itself_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "out", ALBUM, LABELS)
    (tmp_path / "link").symlink_to("link")
    for options in (["--to", "csv"], ["--to", "yolo", "--overwrite"]):
        assert export(tmp_path / "out", tmp_path / "link", *options) == 2
        assert (tmp_path / "link").is_symlink()


def test_the_current_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "out", ALBUM, LABELS)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert export("../out", ".", "--to", "voc") == 0
    assert "images.csv" in os.listdir(".")  # of the folder in which the shell stands


def test_what_appears_during_an_export_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user saves a file among the labels while the export is being written."""
    write_run(tmp_path / "out", ALBUM, LABELS)
    assert export(tmp_path / "out", tmp_path / "made", "--to", "yolo") == 0
    before = content(tmp_path)

    def write_also(*_: object) -> str:
        (tmp_path / "made/labels/late.txt").write_text("mine")
        return ""

    monkeypatch.setattr("jobs.exports.yolo._box_lines", write_also)
    assert export(tmp_path / "out", tmp_path / "made", "--to", "yolo", "--overwrite") == 2
    assert "holds labels/late.txt" in capsys.readouterr().err
    assert content(tmp_path) == {**before, "made/labels/late.txt": b"mine"}


def test_a_replacement_that_fails_halfway_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "out", ALBUM, LABELS)
    assert export(tmp_path / "out", tmp_path / "made", "--to", "yolo") == 0
    before = content(tmp_path)
    rename, count = os.replace, 0

    def fail_third(source: str, target: str) -> None:
        nonlocal count
        count += str(source).startswith(f"{tmp_path}/made/")
        if count == 3:
            raise PermissionError("of another user")
        rename(source, target)

    monkeypatch.setattr("os.replace", fail_third)
    assert export(tmp_path / "out", tmp_path / "made", "--to", "yolo", "--overwrite") == 2
    assert content(tmp_path) == before


@pytest.mark.parametrize("to", ["csv", "yolo"])
def test_stdout_is_no_file(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "out", ALBUM, LABELS)
    monkeypatch.chdir(tmp_path)
    assert export("out", "-", "--to", to) == 2
    assert "FILE -: give a file; `query` writes to stdout" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["out"]


def test_a_pipe_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "out", ALBUM, LABELS)
    os.mkfifo(tmp_path / "pipe")
    assert export(tmp_path / "out", tmp_path / "pipe", "--to", "csv", "--overwrite") == 2
    assert "is no regular file" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()
