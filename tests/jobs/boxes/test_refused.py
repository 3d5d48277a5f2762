"""Wrong rules for boxes are one line and exit code 2, and nothing is written."""

from pathlib import Path

import pytest

from jobs.cli import main
from tests.support.labelled import LABELS, SOURCE, Labelled, random_boxes, write_run


@pytest.fixture
def output(tmp_path: Path) -> str:
    images = [Labelled(f"{SOURCE}/a.jpg", random_boxes(1, 9))]
    return write_run(tmp_path / "out", images, LABELS, source=SOURCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nms", "1.5"], "--nms 1.5: give an IoU of 0 to below 1"),
        (["--classes", "cirle"], "--classes: there is no class cirle: did you mean circle?"),
        (["--thresholds", "star=2"], "--thresholds star=2: give a score of 0 to below 1"),
        (["--thresholds", "none.json"], "--thresholds none.json: there is no such file"),
        (["--rename", "circle=star,star=sun"], "give each class its last name"),
        (["--min-size", "-3"], "--min-size -3: give 0 pixels or more"),
        (["--labels", "star", "--classes", "star"], "both choose classes: give one"),
    ],
)
def test_an_export_is_refused(
    options: list[str],
    message: str,
    output: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", output, "made", "--to", "yolo", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("command", [["query", "SELECT 1"], ["evaluate", "truth.json"]])
def test_other_commands_refuse_what_is_no_iou(
    command: list[str], output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, argument = command
    assert main([name, output, argument, "--nms-across-classes", "-1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--nms-across-classes -1: give an IoU of 0 to below 1" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nms", "1"], "--nms 1: give an IoU"),
        (["--classes", "cirle"], "did you mean circle?"),
        (["--rename", "star=sun,5=moon"], "--rename: the class 5 is renamed twice"),
        # before the weights of a model are read or fetched
        (["--thresholds", "x=2", "--weights", "none.pth"], "--thresholds x=2: give a score of 0"),
    ],
)
def test_a_label_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lake").mkdir()
    words = ["label", str(tmp_path / "lake"), str(tmp_path / "made"), "--model", "shapes-tiny"]
    assert main([*words, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["\\ud800", "a\\u0000b", "sun\\nmoon"])
@pytest.mark.parametrize("content", ['{{"star": "{}"}}', '{{"{}": "star"}}'])
def test_a_new_name_is_a_text(
    name: str, content: str, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "names.json"
    file.write_text(content.format(name))
    for given in (str(file), content.format(name)):
        assert main(["export", output, str(tmp_path / "o"), "--to", "yolo", "--rename", given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "has a control character or half a character" in line


def test_an_argument_that_is_no_utf8_is_refused(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rename", "star=s\udcff"]  # as Python hands over a byte that is no UTF-8
    assert main(["export", output, str(tmp_path / "o"), "--to", "yolo", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has a control character or half a character" in line
