"""Read the images of tars.

Ray's own `read_webdataset` (2.60) can lose samples silently when it retries a stream that has
advanced, and it stops at the first corrupt tar. Tars are therefore streamed here.
"""

import tarfile
from collections.abc import Iterator

from pipeline.formats.image_names import is_image
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
from pipeline.formats.tar_entries import open_tar, tar_entries
from pipeline.isolation.child import Row
from pipeline.schema import TOO_LARGE, Shard
from pipeline.storage.urls import identity


def read_tar(shard: Shard) -> Iterator[Row]:
    """Stream the image members of a tar. The id ends with webdataset's key of the member.

    The key is the path up to the first dot. If a key occurs again, for example because a sample has
    two images, the id uses the whole member name. If that occurs again, a number follows it.
    """
    member = shard.members[0]
    archive_uri = identity(member.uri)
    names = Names()
    count = 0
    try:
        fs, path = open_member(member, "shard")
        with open_version(fs, path, member) as file, open_tar(file, "r|*") as archive:
            for entry in tar_entries(archive):
                if not entry.isfile() or not is_image(entry.name):
                    continue
                name = readable_name(entry.name)
                image_id = names.unique(f"{archive_uri}#{_key(name)}", f"{archive_uri}#{name}")
                if entry.size > MAX_ENCODED_BYTES:
                    yield failed_image(member, image_id, TOO_LARGE, too_large_text(entry.size))
                    continue
                content = archive.extractfile(entry)
                assert content is not None  # the entry is a regular file
                encoded = content.read()
                if len(encoded) < entry.size:
                    raise tarfile.ReadError("unexpected end of data")
                count += 1
                yield image_row(member, image_id, encoded)
    except Exception as error:  # archives break in many ways
        yield row_of_rest(member, count, error, "broken tar", names)


def _key(name: str) -> str:
    """webdataset's key of a member: its path up to the first dot of the file name."""
    folder, _, last = name.removeprefix("./").rpartition("/")
    key = last.split(".", 1)[0]
    return f"{folder}/{key}" if folder else key
