"""INPUT and OUTPUT that no run can have are refused at once, before weights are fetched."""

import os
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.label.places import check_places
from pipeline.storage.errors import InputError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "2024").mkdir(parents=True)
    (folder / "a.jpg").touch()
    return folder


def refusal(source: str | Path, output: str | Path) -> str:
    with pytest.raises(InputError) as refused:
        check_places(str(source), str(output))
    return str(refused.value)


def test_output_is_not_input(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos.parent / "link").symlink_to(photos)
    monkeypatch.chdir(photos.parent)
    for output in ("photos", "photos/", "./photos/../photos", "link", f"file://{photos}"):
        assert "INPUT and OUTPUT are both photos" in refusal("photos", output)
    assert "both s3://b/a/: name another OUTPUT" in refusal("s3://b/a/", "s3://b/a")


def test_output_may_lie_below_input_and_not_above(photos: Path) -> None:
    check_places(str(photos), str(photos / "labels"))
    check_places(str(photos / "a.jpg"), str(photos))  # as a list of URLs may
    check_places(str(photos), str(photos.parent / "photos-labels"))
    assert "lies in OUTPUT" in refusal(photos / "2024", photos)


def test_output_is_no_file(photos: Path) -> None:
    file = photos / "a.jpg"
    for output in (file, file / "labels", file / "deep" / "er"):
        assert f"OUTPUT: {file} is a file" in refusal(photos, output)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http:/h/x?token=5ecret12", "http://h/x cannot be opened: write two slashes"),
        ("s3:/b/x", "s3://b/x cannot be opened: write two slashes"),
        ("s3://key:5ecret12@b/x", "s3://b/x cannot be opened: credentials do not belong into it"),
        ("http://host/x?token=5ecret12", "http://host/x can only be read"),
        ("foo://host/x?token=5ecret12", "foo://host/x cannot be opened"),
        ("http://h:99999999/x?sig=5ecret12", "http://h:99999999/x cannot be opened"),
    ],
)
def test_urls_are_refused_without_their_secrets(photos: Path, url: str, message: str) -> None:
    found = refusal(photos, url)
    assert message in found
    assert "5ecret12" not in found


def test_a_typo_in_a_path_is_guessed(photos: Path) -> None:
    (photos / "2024" / "may").mkdir()
    for wrong, right in (
        ("phtos", "photos"),
        ("photos/2042", "photos/2024"),
        ("Photos/2024/may", "photos/2024/may"),
    ):
        said = refusal(photos.parent / wrong, photos.parent / "out")
        assert said.endswith(f"does not exist: check the spelling; is it {photos.parent / right}?")
        assert "region" not in said
    said = refusal(photos.parent / "holiday", photos.parent / "out")
    assert said.endswith("does not exist: check the spelling")
    said = refusal(photos / "*.jpg", photos.parent / "out")
    assert said.endswith("Patterns are not taken: name the folder, or a list")
    (photos / "a[1].jpg").touch()
    said = refusal(photos / "a[2].jpg", photos.parent / "out")
    assert said.endswith(f"is it {photos / 'a[1].jpg'}?")


@pytest.mark.parametrize(
    ("output", "message"),
    [("http://127.0.0.1:9/x", "can only be read"), ("linked", "is a symbolic link")],
)
def test_a_dry_run_refuses_an_output_that_the_run_refuses(
    output: str,
    message: str,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photos.parent)
    (photos.parent / "linked").mkdir()
    (photos.parent / "linked" / "_runs").symlink_to(photos)
    command = ["label", "photos", output, "--model", "shapes-tiny", "--weights", "random"]
    for switch in ([], ["--dry-run"]):
        assert main([*command, *switch]) == 2
        assert message in capsys.readouterr().err


def test_nothing_is_fetched_for_a_wrong_input(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are at a port where nothing listens."""
    weights = ["--weights", "http://127.0.0.1:9/net.safetensors"]
    assert main(["label", str(photos) + "s", "out", *weights]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["report", str(photos / "a.jpg")]) == 2
    assert "is a file, or lies below one: name a folder" in capsys.readouterr().err
    assert not os.path.exists("out")
