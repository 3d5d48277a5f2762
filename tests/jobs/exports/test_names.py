"""Image names are untrusted: a file that is named after an image stays in its own folder."""

import csv
import json
import unicodedata
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import parse

import pandas
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli import main
from jobs.exports.exports import EXPORTS
from jobs.exports.names import NameRules, SafeNames
from tests.support.labelled import SOURCE, Labelled, random_boxes, write_run

TARS = [f"{SOURCE}/one.tar", f"{SOURCE}/two.tar"]
NASTY_KEYS = [
    *("../../x.jpg", "/etc/passwd", "..", ".", "", ".hidden", "a//b", "a/../b", "-rf", "~/x"),
    *("<b>bold</b>", "'; DROP TABLE images; --", 'quo"te', "tick`$(id)", "back\\slash", "a|b>c"),
    *("\x1b[31mred\x1b[0m", "line\nbreak", "tab\there", "nul\x00", "bell\x07", "\u202egpj.exe"),
    *("CON", "nul.jpg", "aux/x", "dot.", "space ", "été.jpg", "e\u0301te\u0301.jpg", "猫.png"),
    *("A.jpg", "a.JPG", "a.jpg", "a.png", "a", "a.txt", "a.txt/b", "a.xml/b", "a.jpg.txt", "a#b"),
    *("x" * 400 + ".jpg", "/".join(["deep"] * 300), "%2e%2e%2fx", "*?[x]", "=1+1", "{x}", "@x"),
]


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An OUTPUT of two archives with the same keys, and two Parquet files with the same ids."""
    images = [
        Labelled(f"{tar}#{key}", random_boxes(number, 2), shard=tar)
        for tar in TARS
        for number, key in enumerate(NASTY_KEYS)
    ]
    images += [Labelled(key, shard=f"{SOURCE}/{n}.parquet") for n in "ab" for key in ("7", "../x")]
    labels = ("", "<script>alert(1)</script>", '"quoted", \x1b[2J\n- yaml: *x', "", "=cmd()")
    write_run(tmp_path / "out", images, labels, source=SOURCE)
    return str(tmp_path / "out")


def check_paths(names: list[str]) -> None:
    """Paths must be relative, plain, not hidden, and unique even where case does not count."""
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(names)
    for name in names:
        parts = PurePosixPath(name).parts
        assert "/".join(parts) == name and name, name
        assert not any(part.startswith((".", "-", "/", "~")) for part in parts), name
        assert not set(name) & set("\\\"'<>|*?#:;`$&\x00\x1b\n\t"), name
        assert all(unicodedata.category(sign)[0] != "C" for sign in name), name
        assert len(name.encode()) < 1000 and max(len(part.encode()) for part in parts) < 255


@pytest.mark.parametrize("to", EXPORTS)
def test_every_image_gets_a_safe_name_and_can_be_traced_back(
    to: str, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "in" / "made"
    assert main(["export", output, str(exported), "--to", to]) == 0
    assert "\x1b" not in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["made"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    origins = {(f"{tar}#{key}", tar) for tar in TARS for key in NASTY_KEYS}
    origins |= {(key, f"{SOURCE}/{n}.parquet") for n in "ab" for key in ("7", "../x")}
    if to == "coco":
        images = json.loads(exported.read_text())["images"]
        found = [(i["file_name"], i["image_id"], i["shard"]) for i in images]
    elif to == "labelstudio":
        data = [task["data"] for task in json.loads(exported.read_text())]
        found = [(d["file_name"], d["image"], d["shard"]) for d in data]
    elif to == "csv":
        with exported.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {(row["image"], row["shard"]) for row in rows} == origins
        return
    else:
        with (exported / "images.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        found = [(row["picture"], row["image_id"], row["shard"]) for row in rows]
        below = [row["file"] for row in rows]
        folder = exported / ("labels" if to == "yolo" else "Annotations")
        files = {str(path.relative_to(exported)) for path in folder.rglob("*.*")}
        assert set(below) == {name for name in files if (exported / name).is_file()}
        check_paths(below)
    check_paths([name for name, _, _ in found])
    assert {(image_id, shard) for _, image_id, shard in found} == origins
    assert len(found) == len(origins)


def test_hostile_labels_are_exported_as_text(output: str, tmp_path: Path) -> None:
    for to in EXPORTS:
        assert main(["export", output, str(tmp_path / to), "--to", to]) == 0
    names = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())["names"]
    assert list(names.values())[1] == '"quoted", \x1b[2J\n- yaml: *x'
    assert len((tmp_path / "yolo" / "classes.txt").read_text().splitlines()) == 3
    for file in (tmp_path / "voc").rglob("*.xml"):
        for element in parse(file).iter("name"):
            assert element.text is not None and "\x1b" not in element.text
    table = pandas.read_csv(tmp_path / "csv")
    assert "<script>alert(1)</script>" in set(table["class_name"])


def test_plain_names_stay_as_they_are() -> None:
    with SafeNames(NameRules(".txt")) as names:
        for image_id, shard, expected in (
            ("s3://b/lake/album 1/IMG_01.JPG", "s3://b/lake#files-0", "album 1/IMG_01"),
            ("s3://b/lake/x.tar#sample-1", "s3://b/lake/x.tar", "x.tar/sample-1"),
            ("000000005001.jpg", "file:///results.json#images-0", "000000005001"),
            ("s3://other/c/d.jpg", "s3://other#files-0", "other/c/d"),
        ):
            name, file = names.name(image_id, shard, "s3://b/lake")
            assert file == f"{expected}.txt"
            assert name.rpartition(".")[0] == expected or name == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=30), unique=True, max_size=20), st.sampled_from(["", ".xml"]))
def test_any_text_gets_a_safe_name(keys: list[str], suffix: str) -> None:
    with SafeNames(NameRules(suffix)) as names:
        exported = [names.name(f"s#{key}", "s", "file:///lake") for key in keys]
    check_paths([file for _, file in exported])
    check_paths([name for name, _ in exported])
