"""The options that choose boxes become rules by number, and mistakes in them are one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.boxes.choice import BoxChoice, choose_boxes, named_classes
from jobs.boxes.options import BoxOptions, box_words, label_words, word_of
from jobs.boxes.pairs import MOST_BYTES, read_files
from pipeline.stages.box_rules import BoxRules
from pipeline.storage.errors import InputError

LABELS = ("", "person", "car", "truck", "", "bus", "traffic light", "N, W")
CLASSES = named_classes(LABELS)


def choice(**options: Any) -> BoxChoice:
    return choose_boxes(read_files(BoxOptions(**options)), CLASSES, 0.3)


def test_no_option_changes_nothing() -> None:
    made = choice()
    assert made.is_default and made.as_document() == {}
    assert made.labels(len(LABELS)) == LABELS


def test_classes_are_given_by_name_or_number() -> None:
    assert choice(classes="car, 5,traffic light").rules.classes == (2, 5, 6)
    assert choice(classes="1,2,3,5,6,7").is_default


def test_thresholds_are_those_of_their_classes(tmp_path: Path) -> None:
    expected = ((1, 0.6), (5, 0.0))
    assert choice(thresholds="person=0.6,5=0,car=0.3").rules.thresholds == expected
    lines, document = tmp_path / "a=b.csv", tmp_path / "b.json"
    lines.write_text('# mine\n\nperson, 0.6\nbus,0\n"N, W",0.9\n')
    document.write_text('{"person": 0.6, "bus": 0, "N, W": 0.9}', encoding="utf-8-sig")
    for file in (lines, document):
        assert choice(thresholds=str(file)).rules.thresholds == (*expected, (7, 0.9))
    assert choice(thresholds="person=0.6,car=0.5", classes="car").rules.thresholds == ((2, 0.5),)


@pytest.mark.parametrize(
    ("renaming", "names", "moved"),
    [
        ({"car": "auto"}, {2: "auto"}, ()),
        ({"bus": "vehicle", "car": "vehicle"}, {2: "vehicle", 5: ""}, ((5, 2),)),
        ({"car": "truck", "bus": "truck"}, {2: "", 5: ""}, ((2, 3), (5, 3))),
        ({"car": "truck", "truck": "truck"}, {2: ""}, ((2, 3),)),
        ({"1": "anyone"}, {1: "anyone"}, ()),
        ({"person": "person"}, {}, ()),
    ],
)
def test_new_names_have_numbers_of_the_model(
    renaming: dict[str, str], names: dict[int, str], moved: tuple[Any, ...], tmp_path: Path
) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps(renaming))
    made = choice(rename=str(file))
    assert made.rules == BoxRules(renamed=moved)
    assert made.labels(len(LABELS)) == tuple(names.get(k, name) for k, name in enumerate(LABELS))
    assert made.is_default == (not names)


def test_what_is_recorded_needs_no_file(tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("car,vehicle\nbus,vehicle's\n")
    options = read_files(BoxOptions(rename=str(file), nms=0.65, thresholds="car=0.5"))
    file.unlink()
    assert read_files(options) == options
    assert choose_boxes(options, CLASSES, 0.3).names[5] == "vehicle's"
    words = box_words(vars(options))
    assert words[:4] == ["--nms", "0.65", "--thresholds", "car=0.5"]
    assert words[4] == "--rename" and "vehicle" in words[5]


@pytest.mark.parametrize("number", [0.12345678, 0.1 + 0.2, 1e-7, 1234567.0, 1e22, 2.0, 700])
def test_a_number_of_a_recorded_option_reads_back_as_it_was(number: float) -> None:
    words = label_words({"tile": number, "nms": float(number), "tile_overlap": float(number)})
    assert words[::2] == ["--nms", "--tile", "--tile-overlap"]
    assert [float(word) for word in words[1::2]] == [number] * 3
    assert words[3].isdecimal() or not isinstance(number, int)
    assert word_of(2.0) == "2" and word_of(0.5) == "0.5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nms": 1.0}, "--nms 1: give an IoU of 0 to below 1"),
        ({"nms_across_classes": -0.1}, "--nms-across-classes -0.1: give an IoU"),
        ({"min_size": -1.0}, "--min-size -1: give 0 pixels or more"),
        ({"classes": "persn"}, "--classes: there is no class persn: did you mean person?"),
        ({"classes": "CAR"}, "did you mean car?"),
        ({"classes": "xyz"}, "the classes are person, car, truck, bus, traffic light and 1 more"),
        ({"classes": "4"}, "--classes: there is no class 4"),
        ({"classes": ","}, "--classes ,: give names or numbers"),
        ({"classes": "auto", "rename": "car=auto"}, "auto, which is a new name of --rename"),
        ({"thresholds": "car=1"}, "--thresholds car=1: give a score of 0 to below 1"),
        ({"thresholds": "car=high"}, "--thresholds car=high: give a score"),
        ({"thresholds": "car=nan"}, "--thresholds car=nan: give a score"),
        ({"thresholds": '{"car": true}'}, "--thresholds car=True: give a score"),
        ({"thresholds": "cra=0.5"}, "--thresholds: there is no class cra: did you mean car?"),
        ({"thresholds": "car=0.5,car=0.6"}, "--thresholds: car stands there twice"),
        ({"thresholds": "car=0.5,2=0.6"}, "--thresholds: the class 2 stands there twice"),
        ({"thresholds": "car=0.5,bus"}, "--thresholds: bus is no pair: give CLASS=VALUE"),
        ({"thresholds": "{"}, "--thresholds: it is no valid JSON"),
        ({"thresholds": '{"car": ' * 20_000}, "--thresholds: it is no valid JSON"),
        ({"thresholds": "{}"}, "--thresholds: it names no class"),
        ({"thresholds": "0.4"}, "that of --score-threshold, in `export` of --min-score"),
        (
            {"thresholds": "none.csv"},
            "none.csv: there is no such file, and it is no CLASS=VALUE",
        ),
        ({"rename": "car=auto,2=auto"}, "--rename: the class 2 is renamed twice"),
        ({"rename": '{"car": "a", "car": "b"}'}, "--rename: car stands there twice"),
        ({"rename": '{"car": 3}'}, "--rename: car needs a name"),
        ({"rename": '{"car": " "}'}, "--rename: car needs a name"),
        ({"rename": '[["car", "b"]]'}, "there is no such file"),
        ({"rename": "car=truck,truck=lorry"}, "car becomes truck, and truck itself becomes lorry"),
        ({"rename": "auto=car"}, "--rename: there is no class auto"),
    ],
)
def test_a_mistake_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        choice(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"car\n", "line 1: it is no pair: give CLASS,VALUE"),
        (b"car,auto\nbus,\n", "line 2: it is no pair"),
        (b"\xff\xfe", "it is no text in UTF-8"),
        (b"# nothing\n", "it names no class"),
        (b"car,auto\ncar,bus\n", "car stands there twice"),
        (b"x" * (MOST_BYTES + 1), "it is larger than 56 KiB"),
    ],
)
def test_a_file_without_pairs_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        choice(rename=str(file))
    assert str(error.value).startswith(f"--rename {file}")
    assert message in str(error.value)
