"""Documents of OUTPUT that say themselves whether they are whole."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

from jobs.output.errors import DamagedOutput

FORMAT = 2  # of entries, checkpoints and manifests; what versions before 0.2 wrote is 1
T = TypeVar("T")


def seal(document: dict[str, Any]) -> bytes:
    """A document as JSON, with its format and the digest of its content."""
    content = json.dumps(document)
    digest = hashlib.sha256(content.encode()).hexdigest()
    head = json.dumps({"format": FORMAT, "sha256": digest})
    return f'{head[:-1]}, "content": {content}}}\n'.encode()


def unseal(name: str, data: bytes) -> dict[str, Any]:
    """What was sealed. DamagedOutput where it is not whole, or of a format that is not known."""

    def convert() -> dict[str, Any]:
        document = json.loads(data)
        refuse_newer(name, document["format"])
        content = document["content"]
        assert hashlib.sha256(json.dumps(content).encode()).hexdigest() == document["sha256"]
        assert isinstance(content, dict)
        return content

    return convert_document(name, convert)


def convert_document(name: str, convert: Callable[[], T]) -> T:
    """What a function makes of a document; DamagedOutput where it is not what it must be."""
    try:
        return convert()
    except (
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        AssertionError,
        RecursionError,
    ) as e:
        raise damaged_document(name) from e


def refuse_newer(name: str, version: object) -> None:
    """DamagedOutput where a newer version wrote a document."""
    assert type(version) is int and version > 0
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
