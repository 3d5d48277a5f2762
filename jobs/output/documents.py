"""JSON documents of OUTPUT that carry their own digest, so that readers detect damage."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

from jobs.output.errors import DamagedOutput

FORMAT = 2  # of log entries, checkpoints and manifests; versions before 0.2 wrote format 1
T = TypeVar("T")


def seal(document: dict[str, Any]) -> bytes:
    """Serialize a document as JSON, with its format and the digest of its content."""
    content = json.dumps(document)
    digest = hashlib.sha256(content.encode()).hexdigest()
    head = json.dumps({"format": FORMAT, "sha256": digest})
    return f'{head[:-1]}, "content": {content}}}\n'.encode()


def require(condition: object) -> None:
    """Raise ValueError unless a document is as writers write it. `python -O` does not drop it."""
    if not condition:
        raise ValueError("not as a writer writes it")


def unseal(name: str, data: bytes) -> dict[str, Any]:
    """The content of a sealed document.

    Raises DamagedOutput if the document is not whole, or a newer version wrote its format.
    """

    def convert() -> dict[str, Any]:
        document = json.loads(data)
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
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
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
