"""URLs in messages and records."""

import re
import unicodedata
from urllib.parse import urlsplit, urlunsplit


def mask(text: str) -> str:
    """`text`, a URL or a message with some, without what may be secret.

    That is user and password, and the query of web addresses (`?X-Amz-Signature=...`); names of
    files and of S3's objects may hold question marks of their own.
    """
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return re.sub(r"(https?://[^\s?]*)\?[^\s'\")]*", r"\1", text)


_SECRET = re.compile(
    r"x-amz-.*|x-goog-.*|awsaccesskeyid|signature|sig|key-pair-id|token|access_token|password"
    r"|api_key",
    re.IGNORECASE,
)
_BESIDE_SIGNATURES = re.compile(r"se|sp|sv|sr|st|expires|policy|key", re.IGNORECASE)
_USER = re.compile(r"^([a-z0-9+.-]+://)[^/@\s]*@", re.IGNORECASE)


def identity(url: str) -> str:
    """The name of what lies at `url`, in tables and from night to night.

    User and password are no part of it, nor are the parameters of signed web addresses; others are
    (`/image?id=5`).
    """
    if "@" not in url and "?" not in url:
        return url
    url = _USER.sub(r"\1", url)
    if not url.startswith(("http://", "https://")):
        return url
    parts = urlsplit(url)
    pairs = [pair for pair in parts.query.split("&") if pair]
    kept = [pair for pair in pairs if not _SECRET.fullmatch(_name(pair))]
    if len(kept) < len(pairs):
        kept = [pair for pair in kept if not _BESIDE_SIGNATURES.fullmatch(_name(pair))]
    return urlunsplit(parts._replace(query="&".join(kept)))


def _name(pair: str) -> str:
    return pair.partition("=")[0]


def printable(text: str) -> str:
    """`text` for a terminal: control characters, which names may hold to drive it, spelled out."""
    return "".join(
        sign if sign == "\n" or unicodedata.category(sign)[0] != "C" else f"\\x{ord(sign):02x}"
        for sign in text
    )
