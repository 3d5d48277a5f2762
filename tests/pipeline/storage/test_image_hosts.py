"""Addresses that strangers name never lead to this machine or to its network."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession, ClientTimeout
from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.formats.files import read_files
from pipeline.formats.tars import read_tar
from pipeline.plan.lists import read_url_list
from pipeline.schema import NOT_ALLOWED, Member, Shard
from pipeline.storage.checked_connector import CheckedConnector
from pipeline.storage.errors import InputError
from pipeline.storage.explained_errors import describe_error
from pipeline.storage.files import open_location, read_object
from pipeline.storage.image_hosts import (
    VARIABLE,
    ImageHosts,
    RefusedAddress,
    hosts_of_environment,
    is_public,
)
from pipeline.storage.web import WebFileSystem
from tests.support.coroutines import run_coroutine
from tests.support.web import QuietHandler, VersionedFile, served

PRIVATE = """127.0.0.1 127.8.9.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1
    100.100.100.200 168.63.129.16 192.0.0.192 192.0.2.1 198.18.0.1 224.0.0.1 240.0.0.1
    255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 ff02::1 fec0::1 2001:db8::1
    ::ffff:127.0.0.1 ::ffff:a9fe:a9fe ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe
    64:ff9b:1::7f00:1 2002:7f00:1:: 2002:a9fe:a9fe::1 2001:0:4136:e378:8000:63bf:3fff:fdd2
    100::1 2130706433 0x7f000001 127.1 0177.0.0.1 localhost""".split()
IN_PUBLIC = "8.8.8.8 93.184.215.14 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808".split()


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_of_a_network_of_ones_own_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", IN_PUBLIC)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


class Answers(AbstractResolver):
    """A resolver that gives one address after another, as the server of a name can do."""

    def __init__(self, *addresses: str):
        self.addresses = list(addresses)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]
        return [ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET,
                              proto=0, flags=socket.AI_NUMERICHOST)]  # fmt: skip

    async def close(self) -> None:
        pass


async def get(url: str, hosts: ImageHosts, *addresses: str) -> bytes:
    """The body at a URL; `addresses` are what its name resolves to, one request after another."""
    resolver = Answers(*addresses) if addresses else None
    connector = CheckedConnector(hosts, resolver, use_dns_cache=False)
    session = ClientSession(connector=connector, timeout=ClientTimeout(total=2))
    async with session, session.get(url) as response:
        return await response.read()


@pytest.mark.parametrize(
    "host",
    "127.0.0.1 [::1] [::ffff:127.0.0.1] [::ffff:7f00:1] 0x7f000001 2130706433 127.1 0177.0.0.1 "
    "localhost localhost. LOCALHOST 0 0.0.0.0 [::] 127.0.0.1. "
    "\uff11\uff12\uff17.0.0.1 \u24dbocalhost".split(),
)
def test_no_spelling_of_loopback_is_connected_to(host: str) -> None:
    asked: list[str] = []
    file = VersionedFile(b"secret", before_body=lambda: asked.append(host))
    with file.served() as address:
        port = address.rpartition(":")[2]
        with pytest.raises((RefusedAddress, ClientError, ValueError)):
            run_coroutine(get(f"http://{host}:{port}/", ImageHosts()))
    assert not asked


def test_a_name_that_resolves_to_loopback_is_not_connected_to() -> None:
    with VersionedFile(b"secret").served() as address:
        port = address.rpartition(":")[2]
        url = f"http://images.example:{port}/"
        with pytest.raises(RefusedAddress, match=r"images\.example is no host of the public"):
            run_coroutine(get(url, ImageHosts(), "127.0.0.1"))
        allowed = ImageHosts.of([f"images.example:{port}"])
        assert run_coroutine(get(url, allowed, "127.0.0.1")) == b"secret"


def test_the_checked_address_is_the_one_that_is_connected_to() -> None:
    """A name that is public when it is checked, and loopback a moment later, gains nothing."""
    asked: list[int] = []
    file = VersionedFile(b"secret", before_body=lambda: asked.append(1))
    with file.served() as address:
        url = f"http://rebinding.example:{address.rpartition(':')[2]}/"
        with pytest.raises((OSError, ClientError, TimeoutError)):
            run_coroutine(get(url, ImageHosts(), "8.8.8.8", "127.0.0.1"))
    assert not asked


def test_a_redirect_to_an_address_that_is_not_allowed_is_not_followed() -> None:
    with VersionedFile(b"secret").served() as inner:

        class Redirect(QuietHandler):
            def do_GET(self) -> None:
                self.send_response_only(302)
                self.send_header("Location", f"{inner}/latest/meta-data")
                self.send_header("Content-Length", "0")
                self.end_headers()

        with served(Redirect) as outer:
            port = outer.rpartition(":")[2]
            hosts = ImageHosts.of([f"127.0.0.1:{port}"])
            with pytest.raises(RefusedAddress, match=r"127\.0\.0\.1 is no host"):
                run_coroutine(get(outer, hosts))


def test_entries_name_hosts_ports_suffixes_and_buckets() -> None:
    hosts = ImageHosts.of(["A.example", "b.example:9000", ".corp.example", "s3://lake/photos/"])
    assert hosts.names("a.example", 80) and hosts.names("a.example.", 443)
    assert hosts.names("b.example", 9000) and not hosts.names("b.example", 80)
    assert hosts.names("x.corp.example", 80) and not hosts.names("corp.example.evil", 80)
    assert not hosts.names("xa.example", 80) and not hosts.names("notcorp.example", 80)
    hosts.check("s3://lake/photos/a.jpg")
    refused = "s3://lake/photosx/a.jpg s3://lake/photos/../keys gs://lake/photos/a.jpg"
    refused += " file:///etc/passwd /etc/passwd ftp://host/a.jpg http://[ http://"
    for url in refused.split():
        with pytest.raises(RefusedAddress):
            hosts.check(url)
    assert ImageHosts.of(["[::1]:80"]).names("::1", 80)


@pytest.mark.parametrize("entry", ["", "http://a.example", "a b", "s3://", "*", "a.example/x"])
def test_an_entry_that_names_no_host_is_refused(entry: str) -> None:
    with pytest.raises(InputError):
        ImageHosts.of([entry])


def test_the_variable_says_what_the_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ImageHosts.of(["a.example", "s3://lake"])
    monkeypatch.setenv(VARIABLE, hosts.as_variable())
    assert hosts_of_environment() == hosts
    monkeypatch.setenv(VARIABLE, "a.example")
    with pytest.raises(InputError, match="begin with public"):
        hosts_of_environment()
    monkeypatch.delenv(VARIABLE)
    assert hosts_of_environment() is None


def members_of(lines: list[str], folder: Path) -> list[Member]:
    file = folder / "list.txt"
    file.write_text("\n".join(lines))
    return [member for member, _ in read_url_list(*open_location(str(file), "INPUT"))]


def test_a_list_is_read_by_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "public,s3://lake/photos")
    with VersionedFile(b"secret").served() as address:
        WebFileSystem.clear_instance_cache()  # of a process that began with other variables
        lines = [f"{address}/a.jpg", "s3://other/b.jpg"]
        of_web, of_bucket = members_of(lines, tmp_path)
        assert of_web.size == -1 and of_bucket.etag == NOT_ALLOWED
        fs, path = open_location(lines[0], "image")
        with pytest.raises(Exception) as raised:
            read_object(fs, path)
        assert "no host of the public internet" in describe_error(raised.value, lines[0])
        by_name = replace(of_web, uri=lines[0].replace("127.0.0.1", "localhost"))
        rows = list(read_files(Shard("0", "files", (of_web, by_name, of_bucket)), 0))
        assert [row["status"] for row in rows] == ["address_not_allowed"] * 3
        archive = Shard("0", "tar", (by_name,))
        assert [row["status"] for row in read_tar(archive)] == ["address_not_allowed"]
        WebFileSystem.clear_instance_cache()
