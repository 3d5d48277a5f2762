"""`make pictures` makes the images of the documents from a demo and the measurements.

    python -m tests.support.pictures DEMO

DEMO is a folder of `make demo`; its newest run is shown. Needs Debian's `chromium` and the `dev`
packages. Look at what it wrote before you commit it.
"""

import argparse
import base64
import csv
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from jobs.bench.measure import RESULTS
from jobs.bench.plot import plot
from tests.support.browsing import open_page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "jobs" / "report" / "page.jpg"  # the numbers of boxes in a report
SAMPLES = ROOT / "jobs" / "report" / "samples.jpg"  # labelled images, as a report shows them
SCENE = ROOT / "jobs" / "report" / "scene.jpg"  # one of them
SPEED = ROOT / "jobs" / "bench" / "speed.png"
MOST_BYTES = 300_000  # greatest size of all files together
WIDTH = 1120  # CSS pixels of the browser's window
JPEG_QUALITY, PNG_COLOURS = 82, 32
# The cases of the plot in jobs/bench/README.md; `bench plot` alone draws those of all models.
SHOWN = ("deformable-detr-single-scale, ", "deformable-detr, ")
MARGIN = 12  # CSS pixels above and below a screenshot of a part of the page


def newest_page(demo: Path) -> Path:
    """Find the report of the newest run below a folder of `make demo`; it must exist."""
    pages = sorted(demo.resolve().glob("labels-*/_runs/*/report.html"))
    if not pages:
        raise FileNotFoundError(f"{demo} has no report: run `make demo` first")
    return pages[-1]


def write_images(browser: Browser, report: Path) -> list[Path]:
    """Write all four files; the three of the report come from its page."""
    page, trouble = open_page(browser, report, WIDTH, "light")
    assert not trouble, trouble
    # The path of the demo on this machine means nothing to a reader.
    page.locator(".lead .name").evaluate("name => name.textContent = 'demo/lake'")
    detections, failures = (
        f"section:has(h2:text('{name}'))" for name in ("Detections", "Failures")
    )
    _write_jpeg(_take_screenshot_between(page, detections, failures), PAGE)
    random, behind = "h3:text('Chosen at random')", "h3:text('Most objects') ~ h3"
    _write_jpeg(_take_screenshot_between(page, random, behind), SAMPLES)
    crowded = page.locator("h3:text('Most objects') + .sheet img").last  # the widest of the three
    SCENE.write_bytes(base64.b64decode(str(crowded.get_attribute("src")).split(",")[1]))
    _write_speed()
    return [PAGE, SAMPLES, SCENE, SPEED]


def _take_screenshot_between(page: Page, first: str, behind: str) -> Image.Image:
    """Take a screenshot of the page from the top of `first` to the top of `behind`."""
    top, low = (page.locator(one).first.bounding_box() for one in (first, behind))
    assert top is not None and low is not None
    begin, end = top["y"] - MARGIN, low["y"] - MARGIN
    screenshot = page.screenshot(
        full_page=True, clip={"x": 0, "y": begin, "width": WIDTH, "height": end - begin}
    )
    return Image.open(io.BytesIO(screenshot)).convert("RGB")


def _write_jpeg(image: Image.Image, file: Path) -> None:
    image.save(file, quality=JPEG_QUALITY, optimize=True, progressive=True)


def _write_speed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        some, drawn = Path(folder) / "some.csv", Path(folder) / "speed.png"
        with RESULTS.open(newline="") as rows, some.open("w", newline="") as shown:
            reader = csv.DictReader(rows)
            writer = csv.DictWriter(shown, reader.fieldnames or [])
            writer.writeheader()
            writer.writerows(row for row in reader if row["case"].startswith(SHOWN))
        plot(some, drawn)
        image = Image.open(drawn).convert("RGB")
    image.quantize(PNG_COLOURS).save(SPEED, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    report = newest_page(parser.parse_args().demo)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        parser.error("no chromium on this machine")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        written = write_images(browser, report)
        browser.close()
    for file in written:
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size:,} bytes")
    total = sum(file.stat().st_size for file in written)
    print(f"{total:,} bytes of at most {MOST_BYTES:,}")
    return int(total > MOST_BYTES)


if __name__ == "__main__":
    raise SystemExit(main())
