"""Pages in a real browser."""

from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, Page

Scheme = Literal["light", "dark"]


def open_page(browser: Browser, file: Path, width: int, scheme: Scheme) -> tuple[Page, list[str]]:
    """Open a page in a window of this width; return it with its errors, dialogs and requests."""
    context: Any = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
    )
    page: Page = context.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    page.on("request", lambda request: trouble.append(request.url))
    page.goto(file.as_uri())
    own = {file.as_uri()}
    return page, [text for text in trouble if text not in own and not text.startswith("data:")]
