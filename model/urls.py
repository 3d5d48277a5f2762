"""URLs in messages and records."""

import re
import unicodedata


def mask(text: str) -> str:
    """`text`, a URL or a message with some, without what may be secret.

    That is user and password, and the query of web addresses (`?X-Amz-Signature=...`); names of
    files and of S3's objects may hold question marks of their own.
    """
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return re.sub(r"(https?://[^\s?]*)\?[^\s'\")]*", r"\1", text)


def printable(text: str) -> str:
    """`text` for a terminal: control characters, which names may hold to drive it, spelled out."""
    return "".join(
        sign if sign == "\n" or unicodedata.category(sign)[0] != "C" else f"\\x{ord(sign):02x}"
        for sign in text
    )
