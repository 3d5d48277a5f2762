"""Files for `import` that are odd: without an entry, or with names that two images have."""

from pathlib import Path

import pytest

from tests.jobs.imports.test_imports import ENTRIES, IMAGES, bring, document, write


@pytest.fixture
def truth(tmp_path: Path) -> str:
    return write(tmp_path, "truth.json", document())


def test_an_empty_list_is_said_to_be_empty(
    truth: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write(tmp_path, "empty.json", [])
    assert bring((empty, truth), tmp_path / "out", "--model", "m") == 0
    said = capsys.readouterr().err
    assert f"0 boxes of 3 images, by m, in {tmp_path / 'out'}\n" in said
    assert f"DETECTIONS {empty} has no detection: its list is empty" in said


def test_a_name_without_folder_that_two_images_have_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [*IMAGES, {"id": 12, "file_name": "a.png", "width": 9, "height": 9}]
    truth = write(tmp_path, "two.json", document(images=images))
    results = write(tmp_path, "named.json", [{**ENTRIES[0], "image_id": "a"}])
    assert bring((results, truth), tmp_path / "out") == 2
    assert "image_id a is of no image" in capsys.readouterr().err
