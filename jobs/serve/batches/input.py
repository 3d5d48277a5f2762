"""From the input file of a batch to what `label` reads: a list of addresses, and images beside it.

list.txt         the distinct addresses of all lines: INPUT of `label`
images/          the images that lines hold themselves, as `data:` addresses
lines.parquet    the requests
wanted.parquet   which images of OUTPUT answer them
"""

import hashlib
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.serve.batches.lines import Line, is_utf8
from jobs.serve.batches.store import Store
from jobs.serve.http.images import (
    BAD_ADDRESS,
    LONGEST_ADDRESS,
    ImageFailed,
    bytes_of_data,
)
from jobs.serve.protocol.errors import ApiError
from jobs.serve.settings.settings import ApiSettings
from pipeline.formats.members import make_member
from pipeline.schema import ADDRESS_NOT_ALLOWED, EMPTY_FILE
from pipeline.storage.errors import InputError
from pipeline.storage.files import open_location
from pipeline.storage.image_hosts import RefusedAddress
from pipeline.storage.protocols import WEB, protocol_of
from pipeline.storage.urls import identity, mask

LIST, IMAGES_FOLDER, LINES, WANTED = "list.txt", "images", "lines.parquet", "wanted.parquet"
LINE_SCHEMA = pa.schema(
    [
        pa.field("line", pa.int32()),
        pa.field("custom_id", pa.string()),
        pa.field("threshold", pa.float64()),
        pa.field("response_format", pa.string()),  # JSON
        pa.field("images", pa.int32()),
        pa.field("status", pa.int32()),  # of the answer to a request that fails
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
        pa.field("param", pa.string()),
    ]
)
WANTED_SCHEMA = pa.schema(
    [
        pa.field("line", pa.int32()),
        pa.field("index", pa.int32()),  # of the image in its request
        pa.field("uri", pa.string()),  # of the image in OUTPUT; null if it is not asked for
        pa.field("threshold", pa.float64()),
        pa.field("code", pa.string()),  # why it is not asked for
        pa.field("message", pa.string()),
    ]
)
ROWS_AT_ONCE = 10_000
PUT_AT_ONCE = 16  # images of lines that are written at a time; latency is the limit


class InputWriter:
    """Writes what a batch asks for into its folder, in a `with` block. `finish` ends it."""

    def __init__(self, store: Store, folder: str, settings: ApiSettings):
        self._store, self._folder, self._settings = store, folder, settings
        self._stack = ExitStack()
        self._list = self._temporary()
        self._lines, self._wanted = (
            self._stack.enter_context(_Table(self._temporary(), schema))
            for schema in (LINE_SCHEMA, WANTED_SCHEMA)
        )
        self._addresses: dict[str, str] = {}  # by the identities that tables have
        self._names: dict[str, str] = {}  # identities, by address
        self._numbers: dict[str, int] = {}  # the last one of an identity that occurred again
        self._puts = self._stack.enter_context(ThreadPoolExecutor(PUT_AT_ONCE))
        self._pending: deque[Future[None]] = deque()
        self._images_url = store.url_of(f"{folder}/{IMAGES_FOLDER}")
        self.images = self.bad = 0
        self.threshold: float | None = None  # the least of all lines

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def listed(self) -> int:
        """Distinct addresses."""
        return len(self._addresses)

    def _temporary(self) -> Any:
        return self._stack.enter_context(tempfile.NamedTemporaryFile(prefix="detr-batch-"))

    def add(self, line: Line) -> None:
        """Add a request."""
        least = self._settings.score_threshold if line.threshold is None else line.threshold
        self._lines.add(_row_of(line, least))
        if line.error is not None:
            self.bad += 1
            return
        self.threshold = least if self.threshold is None else min(self.threshold, least)
        for index, address in enumerate(line.images):
            row: dict[str, Any] = {"line": line.number, "index": index, "threshold": least}
            try:
                self._wanted.add({**row, "uri": self._uri(address)})
                self.images += 1
            except ImageFailed as error:
                self.bad += 1
                message = mask(error.message)
                self._wanted.add({**row, "code": error.code, "message": message})

    def _uri(self, address: str) -> str:
        """The identity of an image in OUTPUT. Raises ImageFailed for one that is not asked for."""
        if address[:5].lower() == "data:":
            return self._uri_of_data(address)
        if address not in self._names:
            name = allowed_identity(address, self._settings)
            self._names[address] = self._own_identity(address, name)
        return self._names[address]

    def _uri_of_data(self, address: str) -> str:
        encoded = bytes_of_data(address, self._settings.max_image_bytes)
        if not encoded:
            raise ImageFailed(EMPTY_FILE, "the image has no bytes")
        name = hashlib.sha256(encoded).hexdigest()
        url = f"{self._images_url}/{name}"
        if url not in self._names:
            self._names[url] = self._own_identity(url, identity_of(url))
            self._put(f"{self._folder}/{IMAGES_FOLDER}/{name}", encoded)
        return self._names[url]

    def _put(self, name: str, encoded: bytes) -> None:
        """Write an image in the background. A bounded number waits in memory."""
        if len(self._pending) >= PUT_AT_ONCE:
            self._pending.popleft().result()
        self._pending.append(self._puts.submit(self._store.write, name, encoded))

    def _own_identity(self, address: str, name: str) -> str:
        """The name that OUTPUT will have for an address, which no other address of the list has.

        `name` is its identity.

        Addresses may differ in secrets alone, which no identity holds. A fragment, which is not
        sent, then tells them apart.
        """
        listed, first = address, name
        while protocol_of(address) in WEB and name in self._addresses:
            number = self._numbers[first] = self._numbers.get(first, 1) + 1
            listed = f"{address}{'&' if '#' in address else '#'}~{number}"
            name = identity_of(listed)
        if name not in self._addresses:
            self._addresses[name] = listed
            self._list.write(f"{listed}\n".encode())
        return name

    def finish(self) -> None:
        """Write the documents. The images are written then."""
        for pending in self._pending:
            pending.result()
        self._list.flush()
        if self._addresses:
            self._store.write(f"{self._folder}/{LIST}", Path(self._list.name))
        for table, name in ((self._lines, LINES), (self._wanted, WANTED)):
            self._store.write(f"{self._folder}/{name}", table.close())


def allowed_identity(address: str, settings: ApiSettings) -> str:
    """The name of a listed object in OUTPUT.

    Raises ImageFailed for an address that may not be asked for, or that no list can hold.
    """
    if len(address) > LONGEST_ADDRESS:
        raise ImageFailed(BAD_ADDRESS, f"the address has more than {LONGEST_ADDRESS} characters")
    is_line = address == address.strip() and address.isprintable()
    if not is_line or not is_utf8(address):
        raise ImageFailed(
            BAD_ADDRESS, "the address has signs that are not printed, or spaces around it"
        )
    try:
        settings.hosts.check(address)
        return identity_of(address)
    except RefusedAddress as error:
        raise ImageFailed(ADDRESS_NOT_ALLOWED, str(error)) from error
    except InputError as error:
        raise ImageFailed(BAD_ADDRESS, str(error)) from error


def identity_of(address: str) -> str:
    """The name of a listed object in OUTPUT."""
    return identity(make_member(*open_location(address, "the image"), {}).uri)


def _row_of(line: Line, threshold: float) -> dict[str, Any]:
    row = {
        "line": line.number,
        "custom_id": line.custom_id,
        "threshold": threshold,
        "response_format": line.response_format,
        "images": len(line.images),
    }
    error = line.error
    if error is not None:
        row |= {"status": error.status, "code": error.code, "param": error.param}
        row |= {"message": mask(error.message)}
    return row


def error_of(row: dict[str, Any]) -> ApiError | None:
    """The error of a line in LINES; None for a request that was to be answered."""
    if row["status"] is None:
        return None
    return ApiError(row["status"], row["message"], row["code"], row["param"])


class _Table:
    """A Parquet file that is written row by row."""

    def __init__(self, file: BinaryIO, schema: pa.Schema):
        self._file, self._schema = file, schema
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def close(self) -> Path:
        """End the file, and return its path."""
        self._flush()
        self._writer.close()
        self._file.flush()
        return Path(self._file.name)


def rows_of(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """The rows of LINES or WANTED."""
    for some in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE):
        yield from some.to_pylist()
