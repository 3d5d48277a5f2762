"""What exports call images: addresses for Label Studio, and paths below the folder of images."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.cli import main
from jobs.output import paths
from jobs.output.run_documents import write_record, write_table
from pipeline.storage.files import join
from tests.support.labelled import LABELS, SOURCE, Labelled, random_boxes, write_run
from tests.support.samples import jpeg

TAR = f"{SOURCE}/s.tar"


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An OUTPUT of a loose image and one of an archive."""
    images = [
        Labelled(f"{SOURCE}/my album/é.jpg", random_boxes(1, 2)),
        Labelled(f"{TAR}#key", random_boxes(2, 2), "ok", TAR, TAR),
    ]
    return write_run(tmp_path / "out", images, LABELS, source=SOURCE)


def tasks(output: str, file: Path, *options: str) -> list[dict[str, Any]]:
    assert main(["export", output, str(file), "--to", "labelstudio", *options]) == 0
    data = [task["data"] for task in json.loads(file.read_text())]
    return sorted(data, key=lambda one: str(one["image_id"]))


def test_tasks_that_label_studio_cannot_show_are_counted(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tasks(output, tmp_path / "tasks.json")
    assert [one["image"] for one in found] == [f"{SOURCE}/my album/é.jpg", f"{TAR}#key"]
    said = capsys.readouterr().err
    assert "2 tasks have a data.image that Label Studio cannot show" in said
    assert "--image-prefix" in said


@pytest.mark.parametrize(
    ("prefix", "loose", "archived"),
    [
        ("http://host:8081", "/my%20album/%C3%A9.jpg", "/s.tar/key.jpg"),
        ("/data/local-files/?d=lake/", "my%20album/%C3%A9.jpg", "s.tar/key.jpg"),
        ("/data/local-files/?d=", "my%20album/%C3%A9.jpg", "s.tar/key.jpg"),
        ("s3://bucket/lake/", "my album/é.jpg", "s.tar/key.jpg"),
    ],
)
def test_a_prefix_leads_to_the_images(
    prefix: str,
    loose: str,
    archived: str,
    output: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = tasks(output, tmp_path / "tasks.json", "--image-prefix", prefix)
    assert [one["image"] for one in found] == [prefix + loose, prefix + archived]
    assert [one["image_id"] for one in found] == [f"{SOURCE}/my album/é.jpg", f"{TAR}#key"]
    said = capsys.readouterr().err
    assert "cannot show" not in said
    assert "1 images lie in archives: serve the folder JPEGImages" in said


@pytest.mark.parametrize("image_id", ["https://host/a.jpg", "s3://bucket/a.jpg", "gs://b/a.jpg"])
def test_addresses_that_label_studio_shows_need_no_prefix(
    image_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "out", [Labelled(image_id)], LABELS, source="file:///list.txt")
    assert tasks(str(tmp_path / "out"), tmp_path / "tasks.json")[0]["image"] == image_id
    assert "cannot show" not in capsys.readouterr().err


def write_detections(folder: Path) -> list[str]:
    """Write detections of another model on two images; return the arguments of `import`."""
    images = [
        {"id": number, "file_name": name, "width": 640, "height": 480}
        for number, name in enumerate(["album/a.jpg", "b.jpg"])
    ]
    truth = {"images": images, "categories": [{"id": 1, "name": "dog"}]}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(
        json.dumps([{"image_id": 0, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}])
    )
    files = [str(folder / name) for name in ("found.json", "out", "truth.json")]
    return ["import", files[0], files[1], "--annotations", files[2]]


@pytest.mark.parametrize("spelled", ["{}/photos", "file://{}/photos/", "photos", "./photos"])
def test_images_of_an_import_are_named_below_their_folder(
    spelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = write_detections(tmp_path)
    assert main([*command, "--images", spelled.format(tmp_path)]) == 0
    monkeypatch.chdir("/")  # an export has nothing to do with where the import was
    output, file = str(tmp_path / "out"), tmp_path / "made.json"
    assert main(["export", output, str(file), "--to", "coco"]) == 0
    images = json.loads(file.read_text())["images"]
    assert [one["file_name"] for one in images] == ["album/a.jpg", "b.jpg"]
    found = tasks(output, tmp_path / "tasks.json", "--image-prefix", "http://h")
    assert [one["image"] for one in found] == ["http://h/album/a.jpg", "http://h/b.jpg"]


def test_images_of_an_import_are_found_where_they_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos/album").mkdir(parents=True)
    contents = {"album/a.jpg": jpeg(1), "b.jpg": jpeg(2)}
    for name, content in contents.items():
        (tmp_path / "photos" / name).write_bytes(content)
    command = write_detections(tmp_path)
    assert main([*command, "--images", str(tmp_path / "photos")]) == 0
    options = ["--to", "yolo", "--with-images"]
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "made"), *options]) == 0
    for name, content in contents.items():
        assert (tmp_path / "made/images" / name).read_bytes() == content
    command[2] = str(tmp_path / "nowhere")
    assert main(command) == 0
    assert main(["export", command[2], str(tmp_path / "more"), *options]) == 1
    assert "only images below the folder that `import --images URL`" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_objects_that_are_gone_are_left_out_on_demand(
    to: str, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = "20260101T000000Z-aaaaaa"
    write_record(output, run_id, {"run_id": run_id, "options": {}, "gone": 1})
    gone = pa.table({"uri": [TAR]})
    write_table(join(output, paths.document(run_id, "gone.parquet")), gone)
    for options, images in (((), 2), (("--present-only",), 1)):
        made = str(tmp_path / f"made-{images}")
        assert main(["export", output, made, "--to", to, *options]) == 0
        assert f"boxes of {images} image" in (said := capsys.readouterr().err)
        assert ("left out: 1 object gone from INPUT" in said) == (images == 1)
    sql = "SELECT count(*) AS images FROM latest_images WHERE status = 'ok'"
    assert main(["query", output, sql, "--present-only", "--format", "csv"]) == 0
    assert capsys.readouterr().out.split() == ["images", "1"]
