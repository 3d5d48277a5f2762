"""Addresses of objects: the protocols that are accepted, and the file system of each.

fsspec itself opens any protocol that it knows (`github://`, `reference://`, `python`-like ones) and
chains of them (`zip://a::http://b`). A list of addresses may come from anybody, and its addresses
are opened with the rights of the run. So only the protocols below are opened, and `::` is a part of
a name.
"""

import re
from typing import Any
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem, get_filesystem_class

from pipeline.storage.errors import InputError
from pipeline.storage.url_parts import split_user

# The extras of pyproject.toml that install the file system of a protocol.
EXTRAS = {
    "abfs": "azure", "abfss": "azure", "az": "azure", "gcs": "gcs", "gs": "gcs", "hf": "hf",
}  # fmt: skip
WEB = ("http", "https")
BUCKETS = ("s3", "s3a", "gs", "gcs")  # no client takes a user and a password from these
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


def file_system_of(address: str, options: dict[str, Any]) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in it. `options` are the file system's.

    Raises InputError for a protocol that is not accepted, for a web address without a host, and
    ImportError if the package of a protocol is not installed.
    """
    protocol = protocol_of(address)
    if protocol is None and _ONE_SLASH.match(address):
        raise InputError("write two slashes behind the colon, as here")
    if protocol is not None:
        address = protocol + address[len(protocol) :]
        _check(protocol, address)
    kind = _class_of(protocol or "file")
    fs = kind(**{**kind._get_kwargs_from_urls(address), **options})
    return fs, kind._strip_protocol(address)


def _class_of(protocol: str) -> type[AbstractFileSystem]:
    if protocol in ("s3", "s3a"):
        from pipeline.storage.s3 import S3Files  # slow to import

        return S3Files
    if protocol in WEB:
        from pipeline.storage.web import WebFileSystem  # slow to import

        return WebFileSystem
    return get_filesystem_class(protocol)


def _check(protocol: str, address: str) -> None:
    if protocol not in PROTOCOLS:
        accepted = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise InputError(f"{protocol}:// is none of {accepted}: copy the object to one of these")
    if protocol in ("s3", "s3a") and not address.partition("://")[2].strip("/"):
        raise InputError("it names no bucket: check the spelling")
    if protocol in BUCKETS and split_user(protocol, address.partition("://")[2])[0]:
        raise InputError(
            "credentials do not belong into it: set the variables of the store, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if protocol in WEB:
        try:
            parts = urlsplit(address)
            named = bool(parts.hostname) and parts.port != 0  # a wrong port raises ValueError
        except ValueError:
            named = False
        if not named:
            raise InputError("it names no host and port of the web: check the spelling")
