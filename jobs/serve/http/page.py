"""The page at `/`, on which a person tries the server. It fetches nothing from elsewhere."""

import html
from importlib.resources import files
from string import Template

from fastapi import APIRouter, Request
from starlette.responses import Response

from jobs.serve.http.detecting import service_of
from jobs.serve.protocol.errors import ApiError

router = APIRouter(include_in_schema=False)
_FOLDER = files("jobs.serve.http") / "page"
_TYPES = {"page.css": "text/css", "page.js": "text/javascript"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@router.get("/")
async def page(request: Request) -> Response:
    """The page, with what it must know of the server."""
    service = service_of(request)
    text = Template((_FOLDER / "page.html").read_text(encoding="utf-8")).substitute(
        model=html.escape(service.engine.model),
        threshold=f"{service.settings.score_threshold:g}",
        needs_key="yes" if service.settings.keys else "no",
        most_bytes=service.settings.max_image_bytes,
    )
    return Response(text, media_type="text/html", headers=_HEADERS)


@router.get("/page/{name}")
async def part(name: str) -> Response:
    """A style sheet or a script of the page."""
    if name not in _TYPES:
        raise ApiError(404, "The page has no such part.", "unknown_url")
    return Response((_FOLDER / name).read_bytes(), media_type=_TYPES[name], headers=_HEADERS)
