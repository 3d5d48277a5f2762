"""Read the images of tars.

Ray's own `read_webdataset` (2.60) can lose samples silently when it retries a stream that has
advanced, and it stops at the first corrupt tar. Tars are therefore streamed here.
"""

import posixpath
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import BinaryIO

from pipeline.carry.columns import Carry
from pipeline.formats.hidden import is_hidden
from pipeline.formats.image_names import is_image, looks_like_image
from pipeline.formats.members import open_member, readable_name
from pipeline.formats.rows import (
    MAX_ENCODED_BYTES,
    Names,
    failed_image,
    image_row,
    open_version,
    row_of_rest,
    too_large_text,
)
from pipeline.formats.sidecars import Sidecars, key_of_name
from pipeline.formats.tar_entries import Content, Tar, is_regular, open_tar, tar_entries
from pipeline.formats.tar_links import BadLink, Link, Links
from pipeline.isolation.child import Row
from pipeline.schema import TOO_LARGE, UNREADABLE, Shard
from pipeline.storage.urls import identity

TAR_SUFFIXES = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst",
)  # fmt: skip
# Images of one key that wait for the json of their sample, so that they do not fill memory.
MOST_WAITING = 4


@dataclass(frozen=True)
class TarImage:
    """An image of a tar, or why it has no bytes: a status and its description."""

    name: str
    encoded: bytes = b""
    failure: tuple[str, str] | None = None


def read_tar(shard: Shard) -> Iterator[Row]:
    """Stream the images of a tar. The id ends with webdataset's key of the member.

    The key is the path up to the first dot. If a key occurs again, for example because a sample has
    two images, the id uses the whole member name. If that occurs again, a number follows it.
    """
    member = shard.members[0]
    archive_uri = identity(member.uri)
    names = Names()
    count = 0
    try:
        fs, path = open_member(member, "shard")
        with open_version(fs, path, member) as file:
            reopen = partial(open_version, fs, path, member)
            for image, more in _images_with_carried(file, shard.carry, reopen):
                name = readable_name(image.name)
                key = key_of_name(name)
                image_id = names.unique(f"{archive_uri}#{key}", f"{archive_uri}#{name}")
                if image.failure is not None:
                    status, reason = image.failure
                    failed = failed_image(member, image_id, status, readable_name(reason))
                    yield {**failed, **more}
                    continue
                count += 1
                yield {**image_row(member, image_id, image.encoded), **more}
    except Exception as error:  # archives break in many ways
        yield row_of_rest(member, count, error, "broken tar", names)


def _images_with_carried(
    file: BinaryIO, carry: Carry, reopen: Callable[[], AbstractContextManager[BinaryIO]]
) -> Iterator[tuple[TarImage, Row]]:
    """The images of a tar, each with what to add to its row: nothing if nothing is carried."""
    if not carry:
        return ((image, {}) for image in tar_images(file))
    sidecars = Sidecars(carry, reopen)
    return _with_carried(tar_images(file, note=sidecars.note), sidecars)


def _with_carried(images: Iterator[TarImage], sidecars: Sidecars) -> Iterator[tuple[TarImage, Row]]:
    """The images of a tar, each with what to add to its row.

    Images of one key wait for what follows them, until another key shows that the sample is over.
    """
    waiting: list[TarImage] = []
    key = ""

    def release() -> Iterator[tuple[TarImage, Row]]:
        for image in waiting:
            yield image, sidecars.row_of(key)
        waiting.clear()

    try:
        for image in images:
            of_image = key_of_name(readable_name(image.name))
            if of_image != key:
                yield from release()
                sidecars.forget(key)
            key = of_image
            if not sidecars.knows(key) and len(waiting) < MOST_WAITING:
                waiting.append(image)
                continue
            yield from release()
            yield image, sidecars.row_of(key)
    except Exception:  # the archive is broken here, and the images before it are not
        yield from release()
        raise
    yield from release()


def tar_images(
    file: BinaryIO,
    with_bytes: bool = True,
    note: Callable[[str, Content], None] | None = None,
) -> Iterator[TarImage]:
    """The images of a tar: files first, in the order of the archive, then links.

    Which files are images follows from their names, or from their first bytes where a name has no
    extension. Links have the order of the files that they lead to; those that lead to none are the
    last. Without `with_bytes`, no image is read. `note` is called with the name and the content of
    each file, whose image comes after it.

    Raises ReadError where the archive is broken, after the links of what came before.
    """
    links = Links()
    followed: list[Link] = []
    damage: tarfile.ReadError | None = None
    try:
        archive = open_tar(file)
        for entry in tar_entries(archive):
            if is_regular(entry):
                links.note_file(entry.name, entry.offset)
                if note is not None:
                    note(entry.name, Content(archive, entry))
                yield from _image_of_file(archive, entry, with_bytes)
            elif entry.isdir() or entry.isfile():  # old archives have folders that look like files
                links.note_folder(entry.name, entry.offset)
            elif entry.islnk() or entry.issym():
                try:
                    link = links.note_link(entry)
                    if _may_be_image(entry.name):
                        followed.append(link)
                except BadLink as error:
                    if _may_be_image(entry.name):
                        yield _failed_link(entry.name, error)
            elif entry.type == _CONTINUATION and _may_be_image(entry.name):
                yield TarImage(entry.name, failure=(UNREADABLE, _CONTINUATION_TEXT))
    except tarfile.ReadError as error:
        damage = error
    if followed:
        yield from _images_of_links(file, links, followed, with_bytes)
    if damage is not None:
        raise damage


_CONTINUATION = b"M"  # GNU's type of the rest of a file that began in another volume
_CONTINUATION_TEXT = "it began in another volume of the archive: unpack the volumes together"


def _may_be_image(name: str) -> bool:
    """Whether an entry with this name is an image, as far as its name tells."""
    return not is_hidden(name) and (is_image(name) or not posixpath.splitext(name)[1])


def _image_of_file(archive: Tar, entry: tarfile.TarInfo, with_bytes: bool) -> Iterator[TarImage]:
    """The image that a regular entry is, if it is one."""
    name = entry.name.rstrip("/")
    if _may_be_image(name):
        content = Content(archive, entry)
        if is_image(name) or looks_like_image(content.head()):
            yield _image(name, content, with_bytes)


def _image(name: str, content: Content, with_bytes: bool) -> TarImage:
    if content.size > MAX_ENCODED_BYTES:
        return TarImage(name, failure=(TOO_LARGE, too_large_text(content.size)))
    if with_bytes:
        return TarImage(name, content.whole())
    content.check_end()
    return TarImage(name)


def _images_of_links(
    file: BinaryIO, links: Links, followed: list[Link], with_bytes: bool
) -> Iterator[TarImage]:
    """The images that links lead to. The archive is opened once more, and read from start to end.

    A link with the name of an image is one image in any case. One without an extension is none if
    it leads to a folder or to a file that is no image.
    """
    found = links.follow(followed)
    good = [(place, link) for link, place in found if isinstance(place, int)]
    good.sort(key=lambda pair: pair[0])
    if good:
        archive = open_tar(file)
        first = archive.next()
        for offset, group in groupby(good, lambda pair: pair[0]):
            is_first = first is not None and first.offset == offset
            entry = first if is_first else archive.read_entry_at(offset)
            if entry is None or not is_regular(entry):
                raise tarfile.ReadError("the archive is not what it was a moment ago")
            content = Content(archive, entry)
            leads_to_image = is_image(entry.name) or looks_like_image(content.head())
            for _, link in group:
                if leads_to_image:
                    yield _image(link.name, content, with_bytes)
                elif is_image(link.name):
                    yield _failed_link(link.name, BadLink(f"it leads to no image ({entry.name})"))
    for link, place in found:
        if isinstance(place, BadLink) and _is_missed(link, place):
            yield _failed_link(link.name, place)


def _is_missed(link: Link, error: BadLink) -> bool:
    """Whether a link that leads to no file may have been an image."""
    may_lead_to_image = not error.is_folder and _may_be_image(posixpath.basename(link.target))
    return is_image(link.name) or may_lead_to_image


def _failed_link(name: str, error: BadLink) -> TarImage:
    return TarImage(name, failure=(UNREADABLE, f"the link cannot be followed: {error}"))
