"""The bytes of an image that a request names: within it, on the web, or in a bucket.

Nothing is decoded here. That happens in confined processes (pipeline/isolation/README.md).
"""

import asyncio
import base64
import binascii
import time
from dataclasses import dataclass
from weakref import WeakValueDictionary

from aiohttp import ClientResponse, ClientSession, ClientTimeout
from aiohttp.abc import AbstractResolver

from jobs.serve.http.metrics import Metrics
from jobs.serve.settings.settings import ApiSettings
from pipeline.schema import ADDRESS_NOT_ALLOWED, EMPTY_FILE, TIMED_OUT, TOO_LARGE, UNREADABLE
from pipeline.storage.checked_connector import CheckedConnector
from pipeline.storage.explained_errors import describe_error
from pipeline.storage.files import open_location, read_object
from pipeline.storage.image_hosts import RefusedAddress
from pipeline.storage.protocols import WEB, protocol_of
from pipeline.storage.retries import repeat_while
from pipeline.storage.urls import mask
from pipeline.storage.web import exact_session

BAD_ADDRESS = "bad_address"
REDIRECTS = 5
CLIENTS = 16  # whose downloads may take all their places at a time
PIECE = 1 << 16  # bytes
LONGEST_ADDRESS = 8192  # characters
LONGEST_HEADER = 512  # characters of a `data:` address before its comma


@dataclass
class ImageFailed(Exception):
    """An image whose bytes cannot be had. The request may have others."""

    code: str  # a constant for programs
    message: str

    def __str__(self) -> str:
        return self.message


class ImageSource:
    """Gets the bytes of images, a bounded number of downloads of each client at a time.

    So one whose addresses are slow keeps nobody else waiting.
    """

    def __init__(
        self, settings: ApiSettings, metrics: Metrics, resolver: AbstractResolver | None = None
    ):
        """`resolver` is that of `CheckedConnector`."""
        self._settings, self._metrics, self._resolver = settings, metrics, resolver
        self._downloads: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._session: ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def bytes_of(self, address: str, client: str = "") -> bytes:
        """The bytes of an image at a `data:`, `https:`, `http:` or bucket's URL.

        `client` is whose downloads it is one of. Raises ImageFailed.
        """
        if address[:5].lower() == "data:":
            return self.checked(bytes_of_data(address, self._settings.max_image_bytes))
        if len(address) > LONGEST_ADDRESS:
            raise ImageFailed(
                BAD_ADDRESS, f"the address has more than {LONGEST_ADDRESS} characters"
            )
        try:
            self._settings.hosts.check(address)
            mine = self._downloads.setdefault(client, asyncio.Semaphore(self._settings.downloads))
            async with mine, asyncio.timeout(self._settings.download_seconds):
                of_web = protocol_of(address) in WEB
                found = await (self._from_web(address) if of_web else self._from_bucket(address))
        except RefusedAddress as error:
            raise ImageFailed(ADDRESS_NOT_ALLOWED, str(error)) from error
        except TimeoutError as error:
            seconds = self._settings.download_seconds
            text = f"{mask(address)} did not send the image within {seconds:g} s"
            raise ImageFailed(TIMED_OUT, text) from error
        except ImageFailed:
            raise
        except Exception as error:  # stores raise many types
            raise ImageFailed(UNREADABLE, describe_error(error, address)) from error
        self._metrics.downloaded.inc(len(found))
        return self.checked(found)

    def checked(self, encoded: bytes) -> bytes:
        """The bytes, if they are not too many and not none. Raises ImageFailed."""
        if not encoded:
            raise ImageFailed(EMPTY_FILE, "the image has no bytes")
        if len(encoded) > self._settings.max_image_bytes:
            raise _too_large(len(encoded), self._settings.max_image_bytes)
        return encoded

    async def _from_web(self, address: str) -> bytes:
        session = await self._open_session()
        async with session.get(address, max_redirects=REDIRECTS) as response:
            response.raise_for_status()
            return await self._body(response)

    async def _open_session(self) -> ClientSession:
        if self._session is None:
            connector = CheckedConnector(
                self._settings.hosts, self._resolver, limit=CLIENTS * self._settings.downloads
            )
            stall = self._settings.stall_seconds
            timeout = ClientTimeout(total=None, sock_connect=stall, sock_read=stall)
            # A compressed body could become of any size.
            self._session = await exact_session(
                connector=connector, timeout=timeout, auto_decompress=False
            )
        return self._session

    async def _body(self, response: ClientResponse) -> bytes:
        most = self._settings.max_image_bytes
        if (response.content_length or 0) > most:
            raise _too_large(response.content_length or 0, most)
        body = bytearray()
        async for piece in response.content.iter_chunked(PIECE):
            body += piece
            if len(body) > most:
                raise _too_large(len(body), most)
        return bytes(body)

    async def _from_bucket(self, address: str) -> bytes:
        until = time.monotonic() + self._settings.download_seconds

        def read() -> bytes:
            with repeat_while(lambda: time.monotonic() < until):
                fs, path = open_location(address, "the image")
                return read_object(fs, path, self._settings.max_image_bytes + 1)

        return await asyncio.to_thread(read)


def bytes_of_data(address: str, most: int) -> bytes:
    """The bytes in a `data:` address, `most` of them. Raises ImageFailed."""
    comma = address.find(",", 0, LONGEST_HEADER)
    scheme, *parameters = address[: max(comma, 0)].lower().split(";")
    if not scheme.startswith("data:") or "base64" not in parameters:
        raise ImageFailed(BAD_ADDRESS, "the image is no data:image/...;base64,... address")
    start = comma + 1
    if len(address) - start > most * 4 / 3 + 4:
        raise _too_large((len(address) - start) * 3 // 4, most)
    try:
        return base64.b64decode(address[start:], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageFailed(BAD_ADDRESS, f"the image is not in base64: {error}") from error


def _too_large(size: int, most: int) -> ImageFailed:
    return ImageFailed(TOO_LARGE, f"the image has {size} bytes or more, and {most} are allowed")
