"""Whether the packages of the extra `serve` are there. This module needs none of them."""

from importlib.util import find_spec

from pipeline.storage.errors import InputError

NEEDED = ("fastapi", "httptools", "multipart", "prometheus_client", "starlette", "uvicorn")


def refuse_missing_packages() -> None:
    """Raise InputError if a package of the extra is missing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise InputError(
            f"this command needs packages that are missing here ({', '.join(missing)}): "
            "pip install 'detr-batch[serve]'"
        )
