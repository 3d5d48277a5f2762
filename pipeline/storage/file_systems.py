"""The file system of an address.

fsspec itself opens any protocol that it knows (`github://`, `reference://`, `python`-like ones) and
chains of them (`zip://a::http://b`). A list of addresses may come from anybody, and its addresses
are opened with the rights of the run. So only the protocols of protocols.py are opened, and `::` is
a part of a name.
"""

from typing import Any
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem, get_filesystem_class

from pipeline.storage.errors import InputError
from pipeline.storage.protocols import PROTOCOLS, WEB, full_url, protocol_of
from pipeline.storage.url_parts import split_user

BUCKETS = ("s3", "s3a", "gs", "gcs")  # no client takes a user and a password from these


def file_system_of(address: str, options: dict[str, Any]) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in it. `options` are the file system's.

    Raises InputError for a protocol that is not accepted, for a web address without a host, and
    ImportError if the package of a protocol is not installed.
    """
    protocol = protocol_of(address)
    if protocol is None and full_url(address) != address:
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
