"""report.html in a real browser: narrow and wide, light and dark."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from jobs.accounting.gpus import GpuSums
from jobs.accounting.tally import Report
from jobs.cli import main
from jobs.demo.lake import write_lake
from jobs.label.label import label
from jobs.label.options import LabelOptions
from jobs.report.page import gather_contents, render_page
from jobs.report.pictures import PictureReader, read_plan_of_run
from jobs.report.reports import manifest_of, report_of
from tests.conftest import TESTDATA
from tests.support.browsing import Scheme, open_page
from tests.support.gpus import reading

HOSTILE = "<script>document.title='caught'</script><img src=x onerror=alert(1)>\"'&\u202egpj.jpg"
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
WIDTHS, SCHEMES = (390, 1600), ("light", "dark")
# Fields that a report has where a budget ended the run, canaries went along, columns were carried,
# or GPUs computed.
OF_SOME_RUNS = {"ended_by", "left", "kept", "canaries", "carried", "refused_jpegs", "gpus"}
OF_SOME_RUNS |= {"watt_hours", "watt_hours_per_1000_images"}
HEADINGS = ["Sample images", "Detections", "Failures", "Throughput", "Where the time went"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled lake of scenes, with archives, broken images and odd names."""
    folder = tmp_path_factory.mktemp("page")
    write_lake(folder / "lake", 20, 41)
    scenes = sorted((folder / "lake").rglob("*.jpg"))
    shutil.copy(scenes[0], folder / "lake" / HOSTILE.replace("/", "\u2215"))
    (folder / "lake" / f"cut {HOSTILE[:20]}.jpg").write_bytes(scenes[1].read_bytes()[:400])
    (folder / "lake" / "empty.png").touch()
    given = ["label", "lake", "out", "--model", "shapes-tiny", "--usd-per-hour", "0.8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.support.alone", *given]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "out"


def find_page(output: Path) -> Path:
    (file,) = output.glob("_runs/*/report.html")
    return file


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_reads_well_without_a_network(
    browser: Browser, output: Path, width: int, scheme: Scheme
) -> None:
    page, trouble = open_page(browser, find_page(output), width, scheme)
    assert not trouble
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(
        "[...document.querySelectorAll('main *')].every("
        "e => e.getBoundingClientRect().right <= innerWidth + 1)"
    )
    assert page.locator("h2").all_text_contents() == HEADINGS
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth >= 120)")
    classes = page.locator(".classes-seen h4").count()
    assert classes == 8
    assert page.locator(".sheet img").count() >= 6
    assert page.locator(".pair img").count() == 2 * classes
    tiles = page.evaluate("[...document.querySelectorAll('.sheet img')].map(i => i.clientWidth)")
    assert min(tiles) >= (350 if width == 390 else 60)  # one in a row on a telephone
    lightness = "(c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3)"
    ground, ink = (
        page.evaluate(f"{lightness}(getComputedStyle(document.body).{name})")
        for name in ("backgroundColor", "color")
    )
    assert (ground > 200 > 60 > ink) if scheme == "light" else (ground < 60 < 200 < ink)
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().width)"
        ".map(e => e.getBoundingClientRect().height)"
    )
    assert sizes
    assert min(sizes) >= 10  # CSS pixels: the text of a chart can be read on a telephone
    page.context.close()


def test_figures_are_those_of_the_report(browser: Browser, output: Path) -> None:
    report = json.loads((find_page(output).with_name("report.json")).read_text())
    page, _ = open_page(browser, find_page(output), 1600, "light")
    tiles = dict(
        zip(
            page.locator(".figures dt").all_text_contents(),
            page.locator(".figures dd:not(.note)").all_text_contents(),
            strict=True,
        )
    )
    assert tiles["Images"] == str(report["images"])
    assert tiles["Detections"] == str(report["detections"])
    assert float(tiles["Images per second"]) == pytest.approx(report["images_per_second"], rel=0.01)
    assert float(tiles["USD per 1,000 images"]) == pytest.approx(
        report["usd_per_1000_images"], rel=0.05
    )
    assert page.locator(".failures code").all_text_contents() == sorted(report["failed"])
    text = page.locator("main").inner_text()
    assert "reference price of 0.047 USD" in text
    assert "cut <script>" in text
    assert page.title() == f"detr-batch: run {find_page(output).parent.name}"
    page.context.close()


def test_the_bar_of_a_class_is_as_long_as_its_number_is_large(
    browser: Browser, output: Path
) -> None:
    page, _ = open_page(browser, find_page(output), 1600, "light")
    lengths = page.evaluate(
        "[...document.querySelectorAll('.split tr')].filter(r => r.querySelector('.bar'))"
        ".filter(r => r.querySelector('td .label')).map(r => ["
        "r.querySelector('.bar span').getBoundingClientRect().width,"
        "+r.querySelector('.n').textContent.replace(',', '')])"
    )
    assert len(lengths) >= 8
    longest, most = lengths[0]
    for length, number in lengths:
        assert length == pytest.approx(longest * number / most, abs=1)
    page.context.close()


def test_the_query_of_failures_can_be_copied(
    browser: Browser, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, _ = open_page(browser, find_page(output), 1600, "light")
    program, *arguments = shlex.split(page.locator(".copy").inner_text())
    page.context.close()
    assert program == "detr-batch"
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    with (tmp_path / "failures.csv").open() as file:
        rows = list(csv.DictReader(file))
    report = json.loads((find_page(output).with_name("report.json")).read_text())
    assert Counter(row["status"] for row in rows) == report["failed"]


def test_hostile_names_are_text(output: Path) -> None:
    text = find_page(output).read_text()
    assert "<script" not in text
    assert "onerror=alert(1)>" not in text
    assert "\u202e" not in text
    assert "default-src 'none'" in text


def test_report_json_has_all_fields(output: Path) -> None:
    report = json.loads((find_page(output).with_name("report.json")).read_text())
    assert report.keys() == Report.__annotations__.keys() - OF_SOME_RUNS
    assert report["timeline"][-1]["images"] == report["images"]
    assert 0 < report["cpu_use"] <= 1.5
    assert report["cpus"] == 2


def test_pages_of_old_reports_and_lost_images_have_no_empty_sections(
    browser: Browser, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(output, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("_runs/*/report.json")
    report = json.loads(file.read_text())
    new = ("startup_seconds", "stage_workers", "stage_use", "limiting_stage", "timeline", "cpus")
    for name in (*new, "cpu_use"):
        del report[name]
    report.update(usd=None, usd_per_1000_images=None, usd_per_hour=None, price_basis=None)
    file.write_text(json.dumps(report))
    lake = output.parent / "lake"
    lake.rename(output.parent / "gone")
    try:
        file_name = str(tmp_path / "page.html")
        assert main(["report", str(tmp_path / "out"), "--html", file_name]) == 0
    finally:
        (output.parent / "gone").rename(lake)
    assert capsys.readouterr().out == ""
    page, trouble = open_page(browser, tmp_path / "page.html", 400, "light")
    assert not trouble
    text = page.locator("main").inner_text()
    assert page.locator("img").count() == 0
    assert text.count("No image could be fetched again") == text.count("No image") == 1
    assert "does not exist" in text
    assert page.locator("h2").all_text_contents() == [
        name for name in HEADINGS if name != "Throughput"
    ]
    assert "not known" not in text and "USD" not in text
    assert "--usd-per-hour" in text
    page.context.close()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "not known: give label" in capsys.readouterr().out


@pytest.mark.skipif(
    not TESTDATA.is_dir(), reason=f"{TESTDATA} is absent: this test needs its photos"
)
def test_a_run_in_a_bucket_has_its_page_there(bucket: str, tmp_path: Path, local_ray: None) -> None:
    from pipeline.storage.files import list_files, open_location, read_object

    fs, path = open_location(bucket, "INPUT")
    for photo in sorted((TESTDATA / "coco/images/val2017").glob("*.jpg"))[:5]:
        fs.put_file(str(photo), f"{path}/lake/{photo.name}")
    options = LabelOptions(
        f"{bucket}/lake", f"{bucket}/out", model="shapes-tiny", score_threshold=0.0
    )
    assert label(options) == 0
    (name,) = [name for name in list_files(fs, f"{path}/out/_runs") if name.endswith("report.html")]
    page = read_object(fs, name).decode()
    assert page.count("data:image/jpeg") >= 5
    assert "No image" not in page


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_shows_gpus_and_their_energy(
    browser: Browser, output: Path, tmp_path: Path, width: int
) -> None:
    """Here is no GPU, so the readings are made by hand. A slice of a GPU reports no power."""
    sums = GpuSums()
    silent = {"watts": None, "joules_before": None, "joules": None}
    sums.add([reading("one"), reading("two", "GPU-b", name="NVIDIA A100 MIG 1g.5gb", **silent)])
    manifest, report = manifest_of(str(output)), report_of(str(output))
    with PictureReader() as reader:
        planned = read_plan_of_run(str(output), manifest["run_id"])
        contents = gather_contents(str(output), manifest, planned, reader)
    known: dict[str, Any] = {"watt_hours": 1.0, "watt_hours_per_1000_images": 4.5}
    unknown: dict[str, Any] = dict.fromkeys(known)
    for number, energy in enumerate((known, unknown)):
        text = render_page(contents, {**report, "gpus": sums.figures(), **energy})
        (tmp_path / f"{number}.html").write_text(text)
        page, trouble = open_page(browser, tmp_path / f"{number}.html", width, "light")
        assert not trouble
        assert page.evaluate("document.documentElement.scrollWidth") == width
        seen = page.inner_text("main")
        assert "NVIDIA L4" in seen and "use 50 %, memory 5.0 of 20.0 GiB, power 100 W" in seen
        assert "power not measured" in seen
        assert ("4.50" in seen and "1.00 Wh of GPUs" in seen) == (energy is known)
        assert ("does not report its power" in seen) == (energy is unknown)
