"""The file system of web addresses, which sends each address as it was given.

fsspec and yarl decode an address and encode it anew: `%27` becomes `'`, and `%3A` becomes `:`. A
server that checks a signature, or compares names exactly, refuses the result. Here the address is
sent byte for byte, and so is the one that a redirect leads to. Only what may stand in no address is
percent-encoded, such as a space or a letter outside ASCII.
"""

import re
import shutil
import tempfile
from typing import Any, BinaryIO

from aiohttp import ClientPayloadError, ClientRequest, ClientSession, ClientTimeout
from aiohttp.http_exceptions import ContentEncodingError
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from pipeline.storage.checked_connector import CheckedConnector
from pipeline.storage.errors import InputError
from pipeline.storage.image_hosts import hosts_of_environment
from pipeline.storage.urls import mask

PIECE = 1 << 20  # bytes of a body that are read at once
# A stalled request fails after these seconds, as on S3. Only retries.py repeats it. A whole body
# may take longer, because archives are large.
TIMEOUT = ClientTimeout(total=None, connect=20, sock_connect=10, sock_read=30)
_ADDRESS = re.compile(r"(?P<protocol>[^:/?#]+)://(?P<host>[^/?#]*)(?P<rest>[^#]*)", re.DOTALL)
_ILLEGAL = re.compile(r"%(?![0-9A-Fa-f]{2})|[^!$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]")


def sendable(address: str) -> URL:
    """The request of a web address. Its fragment (`#...`) is not sent.

    Raises ValueError if the address names no host.
    """
    found = _ADDRESS.match(address)
    if found is None:
        raise ValueError("it is no address of the web")
    start = f"{found['protocol']}://{found['host']}"
    host = URL(start).raw_authority  # a host has one spelling only
    path = _ILLEGAL.sub(_percent_encoded, found["rest"])
    return URL(f"{found['protocol']}://{host}{path}", encoded=True)


def _percent_encoded(sign: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in sign.group().encode("utf-8", "surrogateescape"))


class _Request(ClientRequest):
    """A request that may come from a redirect, whose target is made `sendable` too."""

    def __init__(self, method: str, url: URL, **options: Any) -> None:
        super().__init__(method, sendable(str(url)), **options)


async def exact_session(timeout: ClientTimeout | None = None, **options: Any) -> ClientSession:
    """A session that sends addresses as they are given, and asks for bodies as they are stored."""
    return ClientSession(
        request_class=_Request,
        requote_redirect_url=False,
        timeout=timeout or TIMEOUT,
        # Images gain nothing by compression, and lengths are those of the content without it.
        headers={"Accept-Encoding": "identity"},
        **options,
    )


async def _session(**options: Any) -> ClientSession:
    """A session that asks only the hosts of DETR_BATCH_IMAGE_HOSTS, where that is set."""
    hosts = hosts_of_environment()
    if hosts is not None:
        options["connector"] = CheckedConnector(hosts)
    return await exact_session(**options)


class WebFileSystem(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's file system of the web with exact addresses, and with bodies of limited size."""

    def __init__(self, **options: Any) -> None:
        super().__init__(get_client=_session, **options)

    def encode_url(self, url: str) -> URL:
        return sendable(url)

    def look(self, url: str, seconds: float) -> dict[str, Any]:
        """The details of an object, as `info`, with up to `seconds` for each of two requests."""
        found: dict[str, Any] = sync(self.loop, self._look, url, seconds)
        return found

    async def _look(self, url: str, seconds: float) -> Any:
        return await self._info(url, timeout=ClientTimeout(total=seconds))

    def read_start(self, url: str, size: int) -> bytes:
        """The first `size` bytes of an object, whether or not its server delivers parts of it."""
        return bytes(sync(self.loop, self._read, url, size)[:size])

    def read_whole(self, url: str, most: int) -> bytes | int:
        """The bytes of an object, or a size above `most`: what was announced, or was read.

        The body decides, because servers answer HEAD and GET with different lengths.
        """
        body = sync(self.loop, self._read, url, most + 1, most)
        if isinstance(body, int):
            return body
        return bytes(body) if len(body) <= most else len(body)

    async def _read(
        self, url: str, size: int, most: int | None = None, **options: Any
    ) -> bytearray | int:
        """The first `size` bytes; the announced length instead if it is above `most`."""
        session = await self.set_session()
        body = bytearray()
        async with session.get(self.encode_url(url), **self.kwargs, **options) as response:
            self._raise_not_found_for_status(response, url)
            length = response.content_length or 0
            if most is not None and length > most:
                return length
            try:
                while len(body) < size and (piece := await response.content.read(PIECE)):
                    body += piece
            except ClientPayloadError as error:
                if not _is_wrongly_labelled(error, options):
                    raise
                return await self._read(url, size, most, auto_decompress=False)
        return body

    def copy_to(self, url: str, file: BinaryIO) -> None:
        """Copy an object into a temporary file, in place of what the file holds.

        Raises InputError if the disk becomes full: a body may be larger than was announced, and may
        have no end.
        """
        sync(self.loop, self._copy_to, url, file)

    async def _copy_to(self, url: str, file: BinaryIO, **options: Any) -> None:
        file.seek(0)
        file.truncate()
        session, room = await self.set_session(), _Room(url)
        async with session.get(self.encode_url(url), **self.kwargs, **options) as response:
            self._raise_not_found_for_status(response, url)
            try:
                while piece := await response.content.read(PIECE):
                    file.write(piece)
                    room.look()
            except ClientPayloadError as error:
                if not _is_wrongly_labelled(error, options):
                    raise
                await self._copy_to(url, file, auto_decompress=False)


class _Room:
    """The room on the disk of temporary files, of which a copy leaves a part."""

    def __init__(self, url: str):
        self._url, self._folder = url, tempfile.gettempdir()
        disk = shutil.disk_usage(self._folder)
        self._left = min(disk.total // 10, disk.free // 2)

    def look(self) -> None:
        """Raise InputError if a part of the disk that others need would be taken."""
        if shutil.disk_usage(self._folder).free < self._left:
            raise InputError(
                f"{mask(self._url)} is larger than the room in {self._folder}, where it is copied "
                "to: name a larger disk with TMPDIR, or put it into a bucket"
            )


def _is_wrongly_labelled(error: ClientPayloadError, options: dict[str, Any]) -> bool:
    """Whether the body is not compressed as its headers say, and was not taken as it is yet."""
    return isinstance(error.__cause__, ContentEncodingError) and "auto_decompress" not in options
