"""Which addresses of images may be asked for, where strangers give them.

The server of `detr-batch serve` fetches what its clients name. Without a check they could reach the
server's own network through it: its loopback, its neighbours, and the metadata service of a cloud,
which hands out credentials. So only public addresses are asked, and the names that the operator
gives. The variable DETR_BATCH_IMAGE_HOSTS sets the same for the listed images of `label`.
"""

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.storage.errors import InputError
from pipeline.storage.protocols import PROTOCOLS, WEB, is_local, protocol_of
from pipeline.storage.urls import mask

VARIABLE = "DETR_BATCH_IMAGE_HOSTS"
PUBLIC = "public"  # in the variable: public addresses, which need no name
_HOST = re.compile(r"\.?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?(:\d{1,5})?|\[[0-9a-f:.]+\](:\d{1,5})?")
_UNICAST = ipaddress.ip_network("2000::/3")  # of IPv6: what is routed in public
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")
# Prefixes whose last 32 bits are an address of IPv4: mapped, compatible, and translated (NAT64).
_IPV4_WITHIN = [ipaddress.ip_network(net) for net in ("::ffff:0:0/96", "::/96", "64:ff9b::/96")]
_SPECIAL = ipaddress.ip_network("192.0.0.0/24")  # Python 3.11 knows only a part of it as private
# Services of a cloud's own machines that answer at an address of the public kind: Azure's host.
_OF_CLOUDS = frozenset({"168.63.129.16"})


class RefusedAddress(InputError):
    """An address that the policy does not allow."""


@dataclass(frozen=True)
class ImageHosts:
    """The hosts and buckets that are allowed, besides all public addresses of the web.

    An entry is a host (`images.internal`, `10.0.0.7`), a host and its port (`localhost:9000`), a
    suffix (`.corp.example`), or the URL of a bucket or of a folder in it (`s3://photos/2026`).
    """

    entries: tuple[str, ...] = ()

    @classmethod
    def of(cls, entries: Sequence[str]) -> "ImageHosts":
        """Check the entries. Raises InputError for one that names no host and no bucket."""
        return cls(tuple(_checked(entry.strip()) for entry in entries))

    def as_variable(self) -> str:
        """The value of DETR_BATCH_IMAGE_HOSTS that sets this."""
        return ",".join([PUBLIC, *self.entries])

    def check(self, url: str) -> None:
        """Raise RefusedAddress for a URL that may not be asked for.

        The addresses that the name of a host stands for are checked when it is connected to
        (checked_connector.py). Raises InputError for what is no URL.
        """
        protocol = protocol_of(url)
        if protocol in WEB:
            host, port = _host_and_port(url)
            self.check_literal(host, port)
        elif is_local(url) or protocol not in PROTOCOLS:
            raise RefusedAddress(f"{mask(url)} is neither an address of the web nor in a bucket")
        elif not self.names_bucket_of(url):
            raise RefusedAddress(f"{mask(url)} is in no bucket that the server may read for others")

    def names_bucket_of(self, url: str) -> bool:
        """Whether an entry is the bucket of an object, or a folder above it."""
        return any(_is_below(url, entry) for entry in self.entries)

    def check_literal(self, host: str, port: int) -> None:
        """Raise RefusedAddress for a host that is written as an address which is not allowed.

        Names pass, because only their addresses can be checked. Every form of an address counts
        that a system's resolver takes for one without asking anybody, except those with letters.
        """
        bare = host.strip("[]")
        if ":" in bare or bare.replace(".", "").isdigit():
            self.check_address(bare, host, port)

    def check_address(self, address: str, host: str, port: int) -> None:
        """Raise RefusedAddress if `address`, to which `host` leads, is not allowed."""
        if not self.names(host, port) and not is_public(address):
            raise RefusedAddress(
                f"{mask(host)} is no host of the public internet, and the server's operator has "
                "not allowed it"
            )

    def names(self, host: str, port: int) -> bool:
        """Whether an entry names the host."""
        name = host.lower().strip("[]").removesuffix(".")
        name = f"[{name}]" if ":" in name else name
        return any(_names(entry, name, port) for entry in self.entries)


def hosts_of_environment() -> ImageHosts | None:
    """The policy of DETR_BATCH_IMAGE_HOSTS; None if it is not set: all addresses are allowed.

    Raises InputError for a value that does not begin with `public`, or with a bad entry.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    first, *entries = (entry.strip() for entry in text.split(","))
    if first != PUBLIC:
        raise InputError(f"{VARIABLE}={text}: begin with {PUBLIC}, as in {PUBLIC},images.internal")
    return ImageHosts.of(entries)


def is_public(address: str) -> bool:
    """Whether a numeric address belongs to the public internet, and to no service of a cloud.

    An address of IPv6 that holds one of IPv4 is as public as that. False for what is no address.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _IPV4_WITHIN):
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip in _SIX_TO_FOUR:
            return is_public(str(ip.sixtofour))
        if ip not in _UNICAST or ip.scope_id is not None:
            return False
    if ip in _SPECIAL:
        return False
    refused = ip.is_private or ip.is_multicast or ip.is_reserved or ip.is_unspecified
    return ip.is_global and not refused and str(ip) not in _OF_CLOUDS


def _checked(entry: str) -> str:
    if protocol_of(entry) is not None:
        if protocol_of(entry) in (*WEB, "file") or not entry.partition("://")[2].strip("/"):
            raise InputError(f"{mask(entry)}: give a host (images.internal) or s3://bucket")
        return entry.rstrip("/")
    if not _HOST.fullmatch(entry.lower()):
        raise InputError(
            f"{mask(entry)!r} names no host: give images.internal, 10.0.0.7:9000, .corp.example or "
            "s3://bucket"
        )
    return entry.lower()


def _host_and_port(url: str) -> tuple[str, int]:
    """The host of a web address, and its port. Raises RefusedAddress if it has none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        raise RefusedAddress(f"{mask(url)} names no host and port of the web")
    return host, port or (443 if protocol_of(url) == "https" else 80)


def _names(entry: str, name: str, port: int) -> bool:
    """Whether an entry is the name of a host, or a suffix of it, and for this port."""
    found = re.search(r":(\d+)\Z", entry)
    host = entry[: found.start()] if found else entry
    is_same = name.endswith(host) if host.startswith(".") else name == host
    return is_same and (found is None or int(found[1]) == port)


def _is_below(url: str, entry: str) -> bool:
    """Whether a URL is an object of a bucket, or of a folder in it, without steps upwards."""
    return url.startswith(f"{entry}/") and not {"..", "."} & set(url.split("/"))
