"""Which objects are images, by their names and by their first bytes."""

import posixpath
from functools import cache

from PIL import Image

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .avif "
    ".jp2 .j2k .ico .tga".split()
)
HEAD_BYTES = 64  # bytes at the start of a file that show which format it has


def is_image(name: str) -> bool:
    """Whether the name has the extension of an image format that is read here."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def looks_like_image(head: bytes) -> bool:
    """Whether a file that starts with these HEAD_BYTES bytes has a format that is read here.

    Formats without a signature, such as TGA, are not recognized.
    """
    return any(accept(head) for accept in _signatures())


@cache
def _signatures() -> tuple[Image._OpenAccept, ...]:  # placeholder
    Image.init()
    return tuple(accept for _, accept in Image.OPEN.values() if accept)
