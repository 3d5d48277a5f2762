"""JSON documents of OUTPUT that carry their own digest, so that readers detect damage."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

from fsspec import AbstractFileSystem

from jobs.output.errors import DamagedOutput
from pipeline.storage.files import read_object
from pipeline.storage.retries import retry

FORMAT = 2  # of log entries, checkpoints and manifests; versions before 0.2 wrote format 1
# Whoever can write OUTPUT must not fill the memory of its readers. The checkpoint of 10,000 nightly
# runs has about 50 MB. Python needs up to 90 bytes of memory for a value.
MOST_BYTES = 256 << 20
MOST_VALUES = 8 << 20  # values of lists and objects
# What code raises that converts a document of another form than it expects.
_OTHER_FORM = (
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    RecursionError,
)
T = TypeVar("T")


def seal(document: dict[str, Any]) -> bytes:
    """Serialize a document as JSON, with its format and the digest of its content."""
    content = json.dumps(document)
    digest = hashlib.sha256(content.encode()).hexdigest()
    head = json.dumps({"format": FORMAT, "sha256": digest})
    data = f'{head[:-1]}, "content": {content}}}\n'.encode()
    refuse_too_large(data)
    return data


def read_document_bytes(fs: AbstractFileSystem, path: str) -> bytes:
    """The bytes of a document, and no more than show that it is too large."""
    try:
        return read_object(fs, path, MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except Exception:  # stores have no range of an empty object, and each says so in its own way
        if retry(fs.info, path)["size"]:
            raise
        return b""


def parse_json(data: bytes) -> Any:
    """Parse a document of OUTPUT. Raises ValueError if it is no JSON or too large.

    Python raises RecursionError, as `convert_document` expects, for a document that is nested too
    deep.
    """
    refuse_too_large(data)
    return json.loads(data)


def refuse_too_large(data: bytes) -> None:
    """Raise ValueError for a document whose reading could fill the memory."""
    if len(data) > MOST_BYTES or sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(
            f"a document of {len(data)} bytes is larger than the {MOST_BYTES} bytes and "
            f"{MOST_VALUES} values that readers take"
        )


def require(condition: object) -> None:
    """Raise ValueError unless a document is as writers write it. `python -O` does not drop it."""
    if not condition:
        raise ValueError("not as a writer writes it")


def unseal(name: str, data: bytes) -> dict[str, Any]:
    """The content of a sealed document.

    Raises DamagedOutput if the document is not whole, or a newer version wrote its format.
    """

    def convert() -> dict[str, Any]:
        document = parse_json(data)
        refuse_newer(name, document["format"])
        content = document["content"]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        require(digest == document["sha256"] and isinstance(content, dict))
        return content

    return convert_document(name, convert)


def convert_document(name: str, convert: Callable[[], T]) -> T:
    """Return the result of `convert`. Raises DamagedOutput if the document has another form."""
    try:
        return convert()
    except _OTHER_FORM as error:
        raise damaged_document(name) from error


def refuse_newer(name: str, version: object) -> None:
    """Raise DamagedOutput if a newer version wrote the document, ValueError if it is no version."""
    if type(version) is not int or version < 1:
        raise ValueError(f"{version!r} is no number of a format")
    if version > FORMAT:
        raise DamagedOutput(
            f"{name} of OUTPUT has format {version}, which a newer detr-batch wrote; this one "
            f"reads up to {FORMAT}: upgrade it"
        )


def damaged_document(name: str) -> DamagedOutput:
    return DamagedOutput(
        f"{name} of OUTPUT is damaged: put back what was there, from a backup or an older version "
        "of the object; nothing was changed"
    )
