"""Addresses of objects: the protocols that are accepted, and what an address says of itself."""

import re
from urllib.parse import urlsplit

# The extras of pyproject.toml that install the file system of a protocol.
EXTRAS = {
    "abfs": "azure", "abfss": "azure", "az": "azure", "gcs": "gcs", "gs": "gcs", "hf": "hf",
}  # fmt: skip
WEB = ("http", "https")
PROTOCOLS = ("file", *WEB, "s3", "s3a", *EXTRAS)
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_ONE_SLASH = re.compile(rf"({'|'.join(PROTOCOLS)}):/(?!/)", re.IGNORECASE)


def protocol_of(address: str) -> str | None:
    """The protocol of a URL in lower case. None for a path."""
    found = _PROTOCOL.match(address)
    return found[1].lower() if found else None


def full_url(address: str) -> str:
    """`http:/host` as `http://host`. Other addresses and paths stay as they are."""
    return _ONE_SLASH.sub(r"\1://", address, count=1) if _ONE_SLASH.match(address) else address


def is_local(address: str) -> bool:
    """Whether an address is a path or a `file://` URL."""
    return protocol_of(address) in (None, "file")


def store_of(url: str) -> str:
    """The name of the store of an object: `https://host`, `s3://bucket`, or `file://`."""
    if is_local(url):
        return "file://"
    try:
        parts = urlsplit(url)
        return f"{protocol_of(url)}://{parts.netloc.rpartition('@')[2].lower()}"
    except ValueError:  # no address; it is refused before it is requested
        return "file://"
