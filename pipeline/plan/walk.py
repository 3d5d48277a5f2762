"""A walk over every object below a path, one object at a time.

The listing of a data lake does not fit in memory as Python objects.
"""

import errno
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.files import list_files, object_info
from pipeline.storage.retries import retry

LOST_AND_FOUND = "lost+found"  # at the top of many disks; only root may read it
MOST_LINKS = 8  # links to folders that one path leads through
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

    Links to folders are followed, as `find -L` does. A link to a folder that the walk is in, or to
    one above it, would lead in circles: its type is "directory". So is that of a link behind
    MOST_LINKS others, and of a folder whose path is longer than the system allows, or that has the
    name LOST_AND_FOUND and may not be read.
    """
    # From the top to where the walk is, however deep that is.
    open_folders = [_Folder(_entries(path), (os.path.realpath(path),))]
    while open_folders:
        folder = open_folders[-1]
        entry = next(folder.entries, None)
        if entry is None:
            open_folders.pop()
            continue
        is_link = entry.is_symlink() and os.path.isdir(entry.path)
        if not is_link and not entry.is_dir(follow_symlinks=False):
            yield from _details(fs, entry)
            continue
        roots = folder.roots
        if is_link:
            target = os.path.realpath(entry.path)
            if len(roots) > MOST_LINKS or _leads_in_circles(target, entry.path, roots):
                yield {"name": entry.path, "type": "directory", "islink": True}
                continue
            roots = (*roots, target)
        try:
            open_folders.append(_Folder(_entries(entry.path), roots))
        except FileNotFoundError:
            continue  # the folder was deleted after the folder above it was listed
        except OSError as error:
            if error.errno == errno.EACCES and entry.name == LOST_AND_FOUND:
                yield {"name": entry.path, "type": "directory", "forbidden": True}
            elif error.errno == errno.ENAMETOOLONG:
                yield {"name": entry.path, "type": "directory"}
            else:
                raise


class _Folder(NamedTuple):
    """A folder that the walk is in."""

    entries: Iterator[os.DirEntry[str]]  # those that are left
    roots: tuple[str, ...]  # the real paths of INPUT and of the links that led here


def _leads_in_circles(target: str, link: str, roots: tuple[str, ...]) -> bool:
    """Whether the folder `target` of a link is one that the walk is in, or above one."""
    inside = [os.path.realpath(os.path.dirname(link)), *roots]
    return any(os.path.commonpath([folder, target]) == target for folder in inside)


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
