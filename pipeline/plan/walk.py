"""Every object below a place, one at a time: a lake's listing does not fit in memory as objects."""

import os
from collections.abc import Iterator
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.files import list_files
from pipeline.storage.retries import retry

Info = dict[str, Any]  # what fsspec tells of an object: name, type, size, and its version


def walk(fs: AbstractFileSystem, path: str) -> Iterator[Info]:
    """Details of every object below `path`, in an order that stays. OSError for a closed folder."""
    if isinstance(fs, LocalFileSystem):
        yield from _folder(fs, path)
    elif "s3" in fs.protocol:
        yield from _pages(fs, path)
    else:
        yield from list_files(fs, path).values()


def _folder(fs: LocalFileSystem, path: str) -> Iterator[Info]:
    """Links to folders are not followed: they may lead in circles."""
    with os.scandir(path) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _folder(fs, entry.path)
        else:
            try:
                info: Info = fs.info(entry)
            except FileNotFoundError:
                continue  # it left since the folder was listed
            yield info


def _pages(fs: AbstractFileSystem, path: str) -> Iterator[Info]:
    """A thousand objects a request, each repeated on its own where it fails.

    s3fs (2026.x) lists whole buckets into dictionaries, a kilobyte an object, and begins anew where
    one of its requests fails.
    """
    bucket, key, _ = fs.split_path(path)
    prefix = f"{key.rstrip('/')}/" if key else ""
    more: dict[str, str] = {}
    while True:
        page = retry(fs.call_s3, "list_objects_v2", fs.req_kw, Bucket=bucket, Prefix=prefix, **more)
        for entry in page.get("Contents", []):
            yield {
                "name": f"{bucket}/{entry['Key']}",
                "type": "file",
                "size": entry["Size"],
                "ETag": entry["ETag"],
            }
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}
