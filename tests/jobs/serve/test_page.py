"""The page at `/` in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from jobs.serve.engine.engine import Engine
from jobs.serve.http.keys import add_key
from jobs.serve.settings.settings import ApiSettings
from tests.support.browsing import Scheme
from tests.support.parameters import others_slow
from tests.support.serving import MODEL, scene_file, serving

WAIT = 15_000  # milliseconds


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "it's a photo.jpg"
    path.write_bytes(scene_file(3))
    return path


def opened(
    browser: Browser, address: str, width: int = 1100, scheme: Scheme = "light"
) -> tuple[Page, list[str]]:
    """The page, and what went wrong on it: messages, dialogs, and requests to elsewhere."""
    context: Any = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        permissions=["clipboard-read", "clipboard-write"],
    )
    page: Page = context.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    own = (address, "blob:", "data:")
    page.on("request", lambda one: None if one.url.startswith(own) else trouble.append(one.url))
    page.goto(address)
    return page, trouble


def detect(page: Page, photo: Path) -> None:
    """Choose an image, and wait for its boxes: they are drawn once the browser has decoded it."""
    page.set_input_files("#file", photo)
    expect(page.locator("#result")).to_be_visible(timeout=WAIT)
    expect(page.locator("#boxes rect").first).to_be_attached(timeout=WAIT)


@pytest.mark.parametrize("width", others_slow([390, 1100]))
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_image_gets_its_boxes(
    browser: Browser, endpoint: str, photo: Path, width: int, scheme: Scheme
) -> None:
    page, trouble = opened(browser, endpoint, width, scheme)
    detect(page, photo)
    answer = json.loads(page.locator("#json").inner_text())
    found = answer["data"][0]["detections"]
    assert found and page.locator("#rows tr").count() == len(found)
    assert page.locator("#boxes rect[fill=none]").count() == len(found)
    first = page.locator("#rows tr").first.inner_text()
    assert found[0]["label"] in first and f"{found[0]['score']:.3f}" in first
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert trouble == []
    page.context.close()


def test_boxes_lie_where_the_objects_are(browser: Browser, endpoint: str, photo: Path) -> None:
    page, _ = opened(browser, endpoint)
    detect(page, photo)
    data = json.loads(page.locator("#json").inner_text())["data"][0]
    image = page.locator("#image").bounding_box()
    best = data["detections"][0]
    drawn = page.locator("#boxes rect[fill=none]").last.bounding_box()  # the best is on top
    assert image is not None and drawn is not None
    scale = image["width"] / data["width"]
    assert drawn["x"] - image["x"] == pytest.approx(best["box"][0] * scale, abs=4)
    assert drawn["y"] - image["y"] == pytest.approx(best["box"][1] * scale, abs=4)
    assert drawn["width"] == pytest.approx((best["box"][2] - best["box"][0]) * scale, abs=8)
    page.context.close()


def test_names_stay_within_the_image_and_off_one_another(
    browser: Browser, endpoint: str, photo: Path
) -> None:
    page, _ = opened(browser, endpoint, 390)
    page.locator("#threshold").fill("0.05")  # as many names as there can be
    detect(page, photo)
    sides = (
        "one => { const at = one.getBoundingClientRect();"
        " return [at.left, at.top, at.right, at.bottom]; }"
    )
    image = page.locator("#image").evaluate(sides)
    places = page.locator("#boxes rect:not([fill=none])").evaluate_all(f"all => all.map({sides})")
    texts = page.locator("#boxes text").evaluate_all(f"all => all.map({sides})")
    assert 0 < len(texts) == len(places) <= page.locator("#boxes rect[fill=none]").count()
    for (left, top, right, bottom), text in zip(places, texts, strict=True):
        assert image[0] - 1 <= left <= text[0] and text[2] <= right <= image[2] + 1
        assert image[1] - 1 <= top and bottom <= image[3] + 1
    for number, (left, top, right, bottom) in enumerate(places):
        for other in places[number + 1 :]:
            apart = (left - other[2], other[0] - right, top - other[3], other[1] - bottom)
            assert max(apart) > -0.1
    page.context.close()


@pytest.mark.slow
def test_an_image_may_be_dropped(browser: Browser, endpoint: str, photo: Path) -> None:
    page, trouble = opened(browser, endpoint)
    transfer = page.evaluate_handle(
        """bytes => { const made = new DataTransfer();
        made.items.add(new File([new Uint8Array(bytes)], "a.jpg", {type: "image/jpeg"}));
        return made; }""",
        list(photo.read_bytes()),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.locator("#result")).to_be_visible(timeout=WAIT)
    assert trouble == []
    page.context.close()


@pytest.mark.slow
def test_the_threshold_asks_again(browser: Browser, endpoint: str, photo: Path) -> None:
    page, _ = opened(browser, endpoint)
    detect(page, photo)
    page.locator("#threshold").fill("0")
    expect(page.locator("#rows tr")).to_have_count(100, timeout=WAIT)
    assert page.locator("#shown-threshold").inner_text() == "0.00"
    page.context.close()


def test_what_is_no_image_is_said(browser: Browser, endpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no image")
    page, trouble = opened(browser, endpoint)
    page.set_input_files("#file", path)
    expect(page.locator("#status.wrong")).to_be_visible(timeout=WAIT)
    assert page.locator("#result").is_hidden() and trouble == []
    page.context.close()


@pytest.fixture
def guarded(tmp_path: Path, engine: Engine) -> Iterator[tuple[str, str]]:
    file = str(tmp_path / "keys.json")
    _, secret = add_key(file, "a")
    with serving(ApiSettings(keys=file), engine) as address:
        yield address, secret


def test_a_key_is_asked_for_where_one_is_needed(
    browser: Browser, guarded: tuple[str, str], photo: Path
) -> None:
    address, secret = guarded
    page, trouble = opened(browser, address)
    page.set_input_files("#file", photo)
    expect(page.locator("#status.wrong")).to_contain_text("wants a key")
    page.get_by_label("Key").fill(secret)
    page.get_by_label("Key").press("Tab")
    expect(page.locator("#result")).to_be_visible(timeout=WAIT)
    assert secret not in page.content() and trouble == []
    page.context.close()


@pytest.mark.slow
def test_the_lines_for_programs_work(endpoint: str, browser: Browser, photo: Path) -> None:
    import subprocess
    import sys

    page, _ = opened(browser, endpoint)
    detect(page, photo)
    wanted = json.loads(page.locator("#json").inner_text())["data"][0]["detections"]
    page.locator("button[data-copies=curl]").click()
    expect(page.locator("button[data-copies=curl]")).to_have_text("Copied")
    curl = page.evaluate("navigator.clipboard.readText()")
    python = page.locator("#python").inner_text()
    done = subprocess.run(
        ["sh", "-c", curl], cwd=photo.parent, capture_output=True, text=True, check=True, timeout=30
    )
    assert json.loads(done.stdout)["data"][0]["detections"] == wanted
    done = subprocess.run(
        [sys.executable, "-c", python], cwd=photo.parent, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == len(wanted) and wanted[0]["label"] in done.stdout
    page.context.close()


def test_the_page_is_reached_by_keyboard_and_named(browser: Browser, endpoint: str) -> None:
    page, _ = opened(browser, endpoint)
    assert MODEL in page.title() and page.locator("h1").inner_text() == MODEL
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "threshold"
    page.context.close()


def test_the_page_allows_no_scripts_of_others(endpoint: str) -> None:
    import requests

    answer = requests.get(endpoint)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert requests.get(f"{endpoint}/page/..%2fkeys.py").status_code == 404
