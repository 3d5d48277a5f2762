"""Which objects are images, by their names and by their first bytes.

Pillow's registry says which formats there are. Two more come from packages that are optional:
pillow-heif (HEIC, HEIF) and pillow-jxl-plugin (JPEG XL). Their names and first bytes are known
without the packages, so that a listing can say which package is missing.
"""

import posixpath
import re
from functools import cache
from importlib import util

from PIL import Image

# Formats in Pillow's registry that are not read. For EPS, Pillow would start Ghostscript, which
# runs the file's program. Of BUFR, GRIB, HDF5, MPEG and WMF, Pillow knows the header alone.
NOT_READ = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})

# IPTC files are records of metadata, and of a Photo CD Pillow reads a small preview.
_NOT_NAMED = NOT_READ | {"IPTC", "PCD"}

# Extensions of formats that Pillow reads, but which its registry does not list with them.
_OTHER_SUFFIXES = frozenset(
    ".jif .jfi .jps .mpo .pjp .pjpeg .dng .btf .tf8 .jph .avif .avifs .webp .qoi".split()
)

# The module that reads the files with an extension, and the extra of this package that brings it.
_OPTIONAL = {
    **dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), ("pillow_heif", "heif")),
    ".jxl": ("pillow_jxl", "jxl"),
}

HEAD_BYTES = 64  # bytes at the start of a file that show which format it has

# What the head of a file of these formats is like. Pillow's own test of them takes two bytes or
# less of a signature, or text that other files have as well.
_HEADS = {
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "CUR": rb"\0\0\x02\0[^\0]\0.{3}\0",
    "FITS": rb"SIMPLE  = {20}[TF]",
    "FLI": rb".{4}[\x11\x12]\xaf.{6}\x08\0",
    "GBR": rb".{20}GIMP",
    "ICO": rb"\0\0\x01\0[^\0]\0.{3}\0[\0\x01]\0[\0\x01\x04\x08\x0f\x10\x18\x20]\0",
    "PCX": rb"\x0a[\0\x02\x03\x05]\x01[\x01\x02\x04\x08]",
    "PPM": rb"P([1-6]\s+(#|[0-9]+\s)|[Ff]\n[0-9]+ [0-9]+\n|0CMYK\s|y(P|RGBA|CMYK)\s)",
    "SGI": rb"\x01\xda[\0\x01][\x01\x02]\0[\x01-\x03]",
    "XBM": rb"(/\*.*\*/)?\s*#define\s+\S*_width\s+[0-9]",
}
# Their tests accept one number in little or big endian, which arrays of numbers begin with too.
_LAX = frozenset({"DIB", "MCIDAS"})

_HEIF = re.compile(rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|hevm|hevs|mif1|mif2|msf1|heif)", re.S)
_JXL = re.compile(rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a", re.S)


@cache
def pillow_formats() -> tuple[str, ...]:
    """The formats that Pillow reads here, without those of packages that are optional."""
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_READ | {"HEIF", "JXL"})


def _suffixes() -> frozenset[str]:
    named = set(pillow_formats()) - _NOT_NAMED
    registered = {end for end, name in Image.registered_extensions().items() if name in named}
    return frozenset(registered | _OTHER_SUFFIXES | set(_OPTIONAL))


IMAGE_SUFFIXES = _suffixes()


def image_suffix(name: str) -> str | None:
    """The extension that says that an object is an image, in lower case; None if none does.

    A query and a fragment may follow it, as in `a.jpg?versionId=3#x`, and white space, as in the
    last line of a list that has other line ends.
    """
    ends = [found.start() for found in re.finditer("[?#]", name)]
    for end in (len(name), *ends):
        suffix = posixpath.splitext(name[:end].rstrip())[1].lower()
        if suffix in IMAGE_SUFFIXES:
            return suffix
    return None


def is_image(name: str) -> bool:
    """Whether the name has the extension of an image format that is known here.

    It may be a format of an optional package: see `needs_package`.
    """
    return image_suffix(name) is not None


def has_package(suffix: str) -> bool:
    """Whether the package that reads an extension of `_OPTIONAL` is installed."""
    return util.find_spec(_OPTIONAL[suffix][0]) is not None


def needs_package(name: str) -> str | None:
    """What to install so that an image with this name can be read; None if nothing is missing.

    A listing leaves such an image out, so that it is labelled once the package is there.
    """
    suffix = image_suffix(name)
    if suffix not in _OPTIONAL or has_package(suffix):
        return None
    extra = _OPTIONAL[suffix][1]
    return f"{suffix} images, which take: pip install '.[{extra}]'"


def looks_like_image(head: bytes) -> bool:
    """Whether a file that starts with these HEAD_BYTES bytes has a format that is known here.

    Formats without a signature, such as TGA, are not recognized. So are files without pixels.
    """
    if _HEIF.match(head) or (_JXL.match(head) and len(head) >= 16):
        return True
    return any(_accepts(name, head) for name in pillow_formats() if name not in _LAX)


def _accepts(name: str, head: bytes) -> bool:
    """Whether Pillow's own test of a format accepts a head, and so does the stricter one here."""
    accept = Image.OPEN[name][1]
    if accept is None or accept(head) is not True:
        return False
    return name not in _HEADS or re.match(_HEADS[name], head, re.S) is not None
