"""A walk over every object below a path, one object at a time.

The listing of a data lake does not fit in memory as Python objects.
"""

import os
from collections.abc import Iterator
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.files import list_files
from pipeline.storage.retries import retry

Info = dict[str, Any]  # fsspec's details of an object: name, type, size, and version


def walk(fs: AbstractFileSystem, path: str) -> Iterator[Info]:
    """Yield the details of every object below `path`, in the same order each time.

    Raises OSError if a folder may not be read.
    """
    if isinstance(fs, LocalFileSystem):
        yield from _folder(fs, path)
    elif "s3" in fs.protocol:
        yield from _pages(fs, path)
    else:
        yield from list_files(fs, path).values()


def _folder(fs: LocalFileSystem, path: str) -> Iterator[Info]:
    """The files below a local folder. Links to folders are not followed, as they may form loops."""
    with os.scandir(path) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _folder(fs, entry.path)
        else:
            try:
                info: Info = fs.info(entry)
            except FileNotFoundError:
                continue  # the file was deleted after the folder was listed
            yield info


def _pages(fs: AbstractFileSystem, path: str) -> Iterator[Info]:
    """The objects below `path` on S3, a thousand per request. A failed request is repeated alone.

    s3fs (2026.x) lists whole buckets into dictionaries, which takes a kilobyte per object, and it
    starts from the beginning if one of its requests fails.
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
