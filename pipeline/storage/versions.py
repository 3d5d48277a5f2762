"""The version of an object, by which a run notices that another one took its place."""

from typing import Any

from model.web_version import web_version
from pipeline.schema import UNSEEN, UNVERSIONED


def etag_of(info: dict[str, Any]) -> str:
    """The version of an object: its ETag, its blob on hf://, or "<mtime_ns>-<size>" of a file.

    On the web it may be another one (see `web_version`). An object without any has its size, or
    UNVERSIONED. Without details it is UNSEEN.
    """
    etag = info.get("ETag") or info.get("etag") or info.get("blob_id") or web_version(info)
    if etag is None and "mtime" in info:
        etag = f"{int(info['mtime'] * 1e9)}-{info.get('size')}"
    if etag is None:
        etag = info.get("size")
    if etag is None:
        etag = UNVERSIONED if info else UNSEEN
    text = str(etag).strip('"')
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
