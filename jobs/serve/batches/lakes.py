"""Batches over lakes: `metadata` names INPUT and OUTPUT of `label` in buckets, and no file is read.

Both must lie below what the operator has allowed: a client could otherwise read and write whatever
the server can.
"""

from collections.abc import Mapping, Sequence

from jobs.serve.batches.records import Allowance
from jobs.serve.protocol.errors import ApiError
from jobs.serve.settings.settings import ApiSettings
from pipeline.storage.image_hosts import ImageHosts
from pipeline.storage.urls import identity, mask

INPUT, OUTPUT = "input", "output"


def is_lake(metadata: Mapping[str, str] | None) -> bool:
    """Whether the metadata of a batch name a lake."""
    return bool(metadata and {INPUT, OUTPUT} & metadata.keys())


def check_lake(metadata: Mapping[str, str], endpoint: str, settings: ApiSettings) -> None:
    """Raise ApiError for a lake that may not be labelled."""
    if endpoint != "/v1/detections":
        text = (
            "A batch with `metadata.input` and `metadata.output` has the endpoint /v1/detections."
        )
        raise ApiError(400, text, "invalid_value", "endpoint")
    for name in (INPUT, OUTPUT):
        if not metadata.get(name):
            text = f"`metadata.{name}` is missing: `input` and `output` go together."
            raise ApiError(400, text, "missing_required_parameter", f"metadata.{name}")
    _check(metadata, INPUT, settings.hosts.entries)
    _check(metadata, OUTPUT, settings.batch_outputs)


def refuse_limited(allowance: Allowance | None) -> None:
    """Raise ApiError for a key with a limit of images: nobody counts those of a lake before."""
    if allowance is not None:
        text = (
            "The key may send a limited number of images, and a lake has any number: ask the "
            "operator of this server for a key without --images-per-minute."
        )
        raise ApiError(403, text, "images_limited", "metadata")


def _check(metadata: Mapping[str, str], name: str, allowed: Sequence[str]) -> None:
    url, param = metadata[name], f"metadata.{name}"
    if identity(url) != url:
        text = f"`{param}` {mask(url)} carries a secret: let the server's role read and write it."
        raise ApiError(400, text, "invalid_value", param)
    if not ImageHosts(tuple(allowed)).names_bucket_of(f"{url.rstrip('/')}/"):
        raise ApiError(
            403,
            f"`{param}` {mask(url)} is in no bucket that the operator of this server allows there.",
            f"{name}_not_allowed",
            param,
        )
