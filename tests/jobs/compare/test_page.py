"""The page of `compare` in a browser: hostile names, images that are found, and others."""

from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from jobs.cli import main
from jobs.demo.lake import write_lake
from pipeline.plan.plan import plan_shards
from tests.support.browsing import Scheme, open_page
from tests.support.labelled import Labelled, write_run
from tests.support.parameters import others_slow

HOSTILE = "<script>document.title='caught'</script><img src=x onerror=alert(1)>\"'&\u202egpj.jpg"
LABELS = ("", f"cat{HOSTILE}", "dog")
GONE, NEW, BOTH = ((1, 0.9, x, 10.0, x + 90, 90.0) for x in (10.0, 150.0, 290.0))


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two OUTPUTs with labels of scenes in a folder, and of one image that cannot be fetched."""
    folder = tmp_path_factory.mktemp("compared")
    write_lake(folder / "lake", 8, 3)
    shards = plan_shards(str(folder / "lake" / "photos")).shards
    members = [member for shard in shards for member in shard.members]
    photos = [Labelled(m.uri, [GONE, BOTH], shard=s.shard) for s in shards for m in s.members]
    assert len(members) == len(photos) == 4
    a = [*photos, Labelled(f"s3://nowhere/{HOSTILE}", [GONE], shard="s3://nowhere")]
    b = [replace(photo, boxes=[BOTH, (2, *NEW[1:])]) for photo in a]
    for name, images in (("a", a), ("b", [*b, Labelled(f"only {HOSTILE}")])):
        write_run(folder / name, images, LABELS, score_threshold=0.3)
        (run,) = (folder / name / "_runs").glob("2*")
        shards.write_to(str(run / "plan.parquet"))
    return str(folder / "a"), str(folder / "b")


@pytest.mark.parametrize(("width", "scheme"), others_slow([(390, "dark"), (1600, "light")]))
def test_the_page_reads_well_without_a_network(
    browser: Browser, sides: tuple[str, str], width: int, scheme: Scheme, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    assert main(["compare", *sides, "--html", str(file)]) == 0
    page, trouble = open_page(browser, file, width, scheme)
    assert not trouble
    assert page.title() == "detr-batch: what changed"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(
        "[...document.querySelectorAll('main *')].every("
        "e => e.getBoundingClientRect().right <= innerWidth + 1)"
    )
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth >= 200)")
    assert page.locator("img").count() == 4
    text = page.locator("main").inner_text()
    assert "5 images compared, 5 changed" in text
    assert (text.count("1 gone, 1 new"), text.count("1 gone, 2 new")) == (4, 1)
    assert "No image" in text
    assert "<img src=x" in text and "\u202e" not in text
    page.context.close()


def test_all_classes_are_on_the_page_and_those_behind_the_first_fold_out(
    browser: Browser, tmp_path: Path
) -> None:
    labels = ("", *(f"class{n:02}" for n in range(1, 31)))
    boxes = [(n, 0.9, 50.0 * n, 10.0, 50.0 * n + 40, 90.0) for n in range(1, 31)]
    sides = [
        write_run(tmp_path / name, [Labelled("x.jpg", found)], labels)
        for name, found in (("a", boxes), ("b", boxes[:7]))
    ]
    file = tmp_path / "page.html"
    assert main(["compare", *sides, "--html", str(file)]) == 0
    page, _ = open_page(browser, file, 390, "light")
    rows = page.locator("table.classes td:first-child")
    names = rows.all_inner_texts()
    assert names[:2] == ["class08", "class09"] and rows.count() == 30
    assert not rows.nth(29).is_visible()
    page.get_by_text("10 more classes").click()
    assert rows.nth(29).is_visible() and rows.nth(29).inner_text() == "class07"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.context.close()


def test_a_page_and_json_are_written_together(
    sides: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "page.html"
    assert main(["compare", sides[0], sides[0], "--html", str(file), "--json"]) == 0
    assert '"gone": 0' in capsys.readouterr().out
    assert "Images that differ most" not in file.read_text()
    assert main(["compare", *sides, "--html", str(tmp_path / "absent" / "page.html")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err
