"""An annotation file of a stranger names files: only images where the user said are copied."""

import json
from pathlib import Path

import pytest

from jobs.cli import main
from tests.support.samples import jpeg

SECRET = b"[default]\naws_secret_access_key = FAKESECRET\n"
ENTRY = {"category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


def bring(folder: Path, names: list[str], *options: str) -> int:
    images = [{"id": n, "file_name": name, "width": 9, "height": 9} for n, name in enumerate(names)]
    document = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": []}
    (folder / "instances.json").write_text(json.dumps(document))
    (folder / "found.json").write_text(json.dumps([{**ENTRY, "image_id": 0}]))
    files = (str(folder / "found.json"), str(folder / "out"))
    return main(["import", *files, "--annotations", str(folder / "instances.json"), *options])


def copied(folder: Path, option: str) -> tuple[int, list[str]]:
    """The exit code of an export with images, and the names of the images that it put there."""
    made = folder / "made"
    code = main(["export", str(folder / "out"), str(made), "--to", "voc", option])
    return code, sorted(
        path.name for path in made.glob("JPEGImages/*") if not path.name.startswith(".")
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "photos/b.jpg").write_bytes(SECRET)
    (tmp_path / "credentials").write_bytes(SECRET)
    return tmp_path


@pytest.mark.parametrize("option", ["--with-images", "--link-images"])
def test_nothing_is_copied_that_only_an_annotation_file_names(
    option: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bring(home, [f"file://{home}/credentials", f"file://{home}/photos/a.jpg"]) == 0
    assert copied(home, option) == (1, [])
    said = capsys.readouterr().err
    assert "no image can be put beside the labels: 2 unreadable" in said
    assert "only images below the folder that `import --images URL` names" in said


@pytest.mark.parametrize("option", ["--with-images", "--link-images"])
def test_what_is_no_image_is_not_copied(
    option: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"file://{home}/photos/a.jpg", f"{home}/photos/b.jpg"]
    assert bring(home, names, "--images", str(home / "photos")) == 0
    assert copied(home, option) == (0, ["a.jpg"])
    assert "1 undecodable" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/credentials", "/photos/../credentials", "/photos2/a.jpg"])
@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_absolute_names_lie_below_the_folder_of_images(
    name: str, form: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bring(home, [form.format(f"{home}{name}")], "--images", str(home / "photos")) == 2
    assert "lies outside of --images" in capsys.readouterr().err
