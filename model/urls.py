"""URLs in messages and records."""

import re


def mask(url: str) -> str:
    """`url` without user, password or query, which may hold secrets."""
    return re.sub(r"//[^/@]*@", "//", url).split("?", 1)[0]
