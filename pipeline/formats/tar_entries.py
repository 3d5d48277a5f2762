"""Tar archives that nobody has checked, read with bounded memory and without endless loops."""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, Literal

LONGEST_HEADER = 1 << 20  # bytes of a long name or of extended attributes; tarfile reads them whole
# Members whose content tarfile takes for a header.
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# Errors that tarfile raises at the zeros that end an archive, or at the end of a file without them.
_PROPER_ENDS = ("EOFHeaderError", "EmptyHeaderError")


class _StrictTarInfo(tarfile.TarInfo):
    """Raises ReadError at a damaged header, and at one that is longer than LONGEST_HEADER.

    tarfile takes a damaged header for the end of the archive, unless it is the first header.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ in _PROPER_ENDS:
                raise
            raise tarfile.ReadError(str(error)) from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictTarInfo":
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in _HEADERS and found.size > LONGEST_HEADER):
            raise tarfile.ReadError(f"a header announces {found.size} bytes")
        return found


class Tar(tarfile.TarFile):
    """A tar that is read entry by entry."""

    members: list[tarfile.TarInfo]  # the entries that tarfile keeps


def open_tar(file: BinaryIO, mode: Literal["r:*", "r|*"]) -> Tar:
    """Open a tar, compressed or not. `r|*` reads it from start to end; `r:*` seeks in the file.

    Raises tarfile.ReadError for a file that is no tar.
    """
    return Tar.open(fileobj=file, mode=mode, tarinfo=_StrictTarInfo)


def tar_entries(archive: Tar) -> Iterator[tarfile.TarInfo]:
    """The entries of a tar, which are not kept in memory. Raises ReadError where it is broken."""
    while (entry := archive.next()) is not None:
        if archive.offset <= entry.offset:
            raise tarfile.ReadError("a header leads backwards")
        yield entry
        archive.members.clear()
