"""URLs in messages and records."""

import re
import unicodedata
from urllib.parse import urlsplit, urlunsplit


def mask(text: str) -> str:
    """`text`, a URL or a message that contains URLs, without the parts that may be secret.

    These are the user and password, and the query of web addresses (`?X-Amz-Signature=...`). The
    names of files and of S3 objects may contain question marks, so these are not removed.
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
    """The name of the object at `url`, which is the same in all tables and all runs.

    It does not contain the user, the password and the parameters of signed web addresses. It
    contains other parameters (`/image?id=5`).
    """
    if "@" not in url and "?" not in url:
        return url
    url = _USER.sub(r"\1", url)
    if not url.startswith(("http://", "https://")):
        return url
    parts = urlsplit(url)
    pairs = [pair for pair in parts.query.split("&") if pair]
    public = [pair for pair in pairs if not _SECRET.fullmatch(_name(pair))]
    if len(public) < len(pairs):
        public = [pair for pair in public if not _BESIDE_SIGNATURES.fullmatch(_name(pair))]
    return urlunsplit(parts._replace(query="&".join(public)))


def _name(pair: str) -> str:
    return pair.partition("=")[0]


def printable(text: str) -> str:
    """`text` with control characters escaped, because names may use them to control a terminal."""
    return "".join(
        sign if sign == "\n" or unicodedata.category(sign)[0] != "C" else f"\\x{ord(sign):02x}"
        for sign in text
    )
