"""Reports of imported detections: pictures, and neither rates nor costs."""

import json
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.demo.lake import write_lake
from jobs.report.imported import Imported
from tests.support.parameters import others_slow

PICTURE = "data:image/jpeg"
OUTSIDE = [
    "1.jpg", "l/1.jpg", "/l/1.jpg", "file:///etc/passwd", "file:///l2/1.jpg", "FILE:///l/1.jpg",
    "file:///l/../etc/passwd", "file:///l/a/./1.jpg", "s3://l/p/a.tar#1", "s3://l/p/a.TAR.GZ#1",
    "s3://l/1.jpg", "http://127.0.0.1/1.jpg", "s3://l/p/%2e%2E/1.jpg", "s3://l/p/..",
]  # fmt: skip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with annotation files whose names of images are relative, and are URLs."""
    folder = tmp_path_factory.mktemp("imported")
    write_lake(folder / "lake", 8, 3)
    photos = sorted((folder / "lake" / "photos").rglob("*.*"))
    for kind in ("relative", "urls"):
        names = [
            photo.as_uri() if kind == "urls" else str(photo.relative_to(folder / "lake"))
            for photo in photos
        ]
        images = [
            {"id": i, "file_name": name, "width": 200, "height": 100}
            for i, name in enumerate(names)
        ]
        document = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": []}
        (folder / f"{kind}.json").write_text(json.dumps(document))
    entries = [
        {"image_id": i, "category_id": 1, "bbox": [10, 10, 50, 40], "score": 0.9 - 0.1 * i}
        for i in range(len(photos) - 1)
    ]
    (folder / "results.json").write_text(json.dumps(entries))
    (folder / "others.json").write_text(json.dumps([{**one, "score": 0.95} for one in entries]))
    return folder


def bring(lake: Path, output: Path, kind: str, *options: str, results: str = "results") -> str:
    command = ["import", str(lake / f"{results}.json"), str(output)]
    assert main([*command, "--annotations", str(lake / f"{kind}.json"), *options]) == 0
    return str(output)


@pytest.mark.parametrize("kind", others_slow(["urls", "relative"]))
def test_a_page_has_pictures_and_no_rates(lake: Path, tmp_path: Path, kind: str) -> None:
    output = bring(lake, tmp_path / "out", kind, "--images", str(lake / "lake"))
    assert main(["report", output, "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count(PICTURE) >= 4 and "No image" not in page
    for words in ("per second", "Throughput", "USD", "Failures", "not known", "Where the time"):
        assert words not in page, words


@pytest.mark.parametrize("kind", ["urls", "relative"])
def test_a_page_of_an_import_without_a_folder_has_no_pictures(
    lake: Path, tmp_path: Path, kind: str
) -> None:
    """An annotation file alone opens nothing, and the page says how to name the folder."""
    output = bring(lake, tmp_path / "out", kind)
    assert main(["report", output, "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert PICTURE not in page and "--images URL" in page
    assert "cat</bdi>" in page


def test_reports_have_no_made_up_rates(
    lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = bring(lake, tmp_path / "out", "relative")
    capsys.readouterr()
    assert main(["report", output]) == 0
    text = capsys.readouterr().out
    assert "(imported)" in text
    for words in ("throughput", "steady", "device use", "cost", "retries", "workers"):
        assert words not in text, words
    assert main(["report", output, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["imported"] and report["images_per_second"] is None
    assert report["device_use"] is None
    assert main(["report", output, "--all"]) == 0
    text = capsys.readouterr().out
    assert "imported" in text and "cost of all" not in text and "None" not in text
    assert main(["report", output, "--all", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["totals"]["runs_without_price"] == 0


@pytest.mark.slow
def test_a_page_of_two_imports_that_differ_has_pictures(lake: Path, tmp_path: Path) -> None:
    where = ["--images", str(lake / "lake")]
    sides = [
        bring(lake, tmp_path / name, "relative", *where, results=results)
        for name, results in (("a", "results"), ("b", "others"))
    ]
    assert main(["compare", *sides, "--html", str(tmp_path / "page.html")]) == 0
    assert PICTURE in (tmp_path / "page.html").read_text()


def test_only_what_lies_below_the_folder_is_opened() -> None:
    local, bucket = Imported("file:///l"), Imported("s3://l/p")
    assert local.shard("file:///l/1.jpg") and bucket.shard("s3://l/p/a/1.jpg")
    for imported in (Imported(None), local, bucket):
        for name in OUTSIDE:
            assert imported.shard(name) is None, name


def test_sql_and_python_agree_about_images_that_can_be_fetched() -> None:
    import duckdb

    names = [
        "1.jpg",
        "file:///1.jpg",
        "FILE:///1#2.jpg",
        "s3://l/a.tar#1",
        "s3://l/b.pq#7",
        "S3://l/c",
        "s3://l/it's/c",
        "file:///l/1.jpg",
        *OUTSIDE,
    ]
    for imported in map(Imported, (None, "file:///l", "s3://l", "s3://l/it's")):
        found = duckdb.execute(
            f"SELECT uri FROM (SELECT unnest($names) AS uri) WHERE {imported.condition()}",
            {"names": names},
        ).fetchall()
        assert [name for (name,) in found] == [name for name in names if imported.shard(name)]
