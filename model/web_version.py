"""The version of an object of the web, as its server reports it."""

from collections.abc import Mapping
from typing import Any


def web_version(info: Mapping[str, Any]) -> str | None:
    """The version of an object of which fsspec found `info`; None if its server reports none.

    This is its ETag, else a digest of its content, else when it was modified and its size. A size
    alone is no version: what replaces an object may be as long.
    """
    for header in ("ETag", "Content-MD5", "Digest"):
        if value := info.get(header):
            return str(value)
    if modified := info.get("Last-Modified"):
        return f"{modified}-{info.get('size')}"
    return None
