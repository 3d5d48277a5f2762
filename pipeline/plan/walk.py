"""A walk over every object below a path, one object at a time.

The listing of a data lake does not fit in memory as Python objects.
"""

import errno
import os
from collections.abc import Iterator
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.files import list_files, object_info
from pipeline.storage.retries import retry

Info = dict[str, Any]  # fsspec's details of an object: name, type, size, and version


def walk(fs: AbstractFileSystem, path: str) -> Iterator[Info]:
    """Yield the details of every object below `path`, in the same order each time.

    Raises OSError if a folder may not be read.
    """
    if isinstance(fs, LocalFileSystem):
        yield from _files_below(fs, path)
    elif "s3" in fs.protocol:
        yield from _pages(fs, path)
    else:
        yield from list_files(fs, path).values()


def _files_below(fs: LocalFileSystem, path: str) -> Iterator[Info]:
    """The objects below a local folder, and the entries that are passed over.

    A link to a folder is followed if the folder neither holds nor lies in what is read anyway, so
    that no file is there twice, or for ever. Other links to folders have the type "directory", and
    so has a folder whose path is longer than the system allows.
    """
    elsewhere = _Elsewhere(path)
    open_folders = [_entries(path)]  # from the top to where the walk is, however deep that is
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
        elif not entry.is_dir(follow_symlinks=False) and not elsewhere.has(entry):
            yield from _details(fs, entry)
        else:
            try:
                open_folders.append(_entries(entry.path))
            except FileNotFoundError:
                continue  # the folder was deleted after the folder above it was listed
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                yield {"name": entry.path, "type": "directory"}


class _Elsewhere:
    """INPUT and the folders that links lead to, none of which holds another."""

    def __init__(self, root: str):
        self._read = [os.path.realpath(root)]

    def has(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a link to a folder that is not read yet. It counts as read then."""
        if not entry.is_symlink() or not os.path.isdir(entry.path):
            return False
        target = os.path.realpath(entry.path)
        for folder in self._read:
            if os.path.commonpath([folder, target]) in (folder, target):
                return False
        self._read.append(target)
        return True


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def _details(fs: LocalFileSystem, entry: os.DirEntry[str]) -> Iterator[Info]:
    """The details of an entry that is no folder; of a link, those of its target.

    A link that leads nowhere is a file of unknown size and version: its row will say so. So is a
    file whose path is longer than the system allows.
    """
    try:
        yield object_info(fs, entry.path)
    except OSError as error:
        deleted = isinstance(error, FileNotFoundError) and not entry.is_symlink()
        if not deleted:
            yield {"name": entry.path, "type": "file"}


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
