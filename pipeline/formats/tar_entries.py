"""Tar archives that nobody has checked, read with bounded memory and without endless loops."""

import tarfile
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, cast

from pipeline.formats.image_names import HEAD_BYTES
from pipeline.formats.unpacking import MOST_PADDING, ArchiveStream, open_stream

MOST_HEADER_BYTES = 2 << 20  # bytes of all headers of one member; tarfile reads them whole
MOST_ATTRIBUTES = 1000  # attributes of all members together, which tarfile keeps
PIECE = 1 << 20  # bytes of a member that are read at a time


class _StrictTarInfo(tarfile.TarInfo):
    """Raises ReadError at a damaged header.

    tarfile takes a damaged header for the end of the archive, unless it is the first header. Behind
    the zeros that end an archive, another archive may follow, and also bytes without a meaning.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictTarInfo":
        archive = cast(Tar, tarfile_)
        try:
            found = super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.judge(error)
            raise
        if archive.has_garbage:
            raise tarfile.ReadError(f"{archive.padding} bytes before a header are damaged")
        archive.padding = 0
        return found


class Tar(tarfile.TarFile):
    """A tar that is read entry by entry. Archives that follow one another are read as one."""

    members: list[tarfile.TarInfo]  # the entries that tarfile keeps

    def __init__(self, stream: ArchiveStream) -> None:
        self.stream = stream
        self.padding = 0  # number of bytes since the last entry, from the first zeros on
        self.has_garbage = False  # whether these bytes are not all zeros
        super().__init__(
            fileobj=cast(IO[bytes], stream),
            mode="r",
            tarinfo=_StrictTarInfo,
            ignore_zeros=True,
            encoding="utf-8",
        )

    def next(self) -> tarfile.TarInfo | None:
        self.stream.allowance = MOST_HEADER_BYTES
        if len(self.pax_headers) > MOST_ATTRIBUTES:
            raise tarfile.ReadError(f"it has more than {MOST_ATTRIBUTES} global attributes")
        try:
            return super().next()
        except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise tarfile.ReadError(f"damaged header: {error}") from error
        finally:
            self.stream.allowance = None

    def judge(self, error: tarfile.HeaderError) -> None:
        """Raise ReadError if a block without a header is damage, and not the end or behind it."""
        kind = type(error).__name__  # typeshed does not know these classes
        if kind == "EmptyHeaderError":
            if self.stream.strange and not self.padding:
                raise tarfile.ReadError(
                    "the compressed data ends before the archive does; something else follows it"
                ) from error
            return
        is_zero = kind == "EOFHeaderError"
        if not is_zero and (not self.padding or self.stream.last[257:262] == b"ustar"):
            text = f"it is no tar archive ({error})" if self.offset == 0 else str(error)
            raise tarfile.ReadError(text) from error
        self.padding += tarfile.BLOCKSIZE
        self.has_garbage |= not is_zero
        self.stream.allowance = MOST_HEADER_BYTES
        if self.padding > MOST_PADDING:
            raise tarfile.ReadError(f"no member follows within {MOST_PADDING} bytes")

    def read_entry_at(self, offset: int) -> tarfile.TarInfo | None:
        """The entry whose headers start at `offset`, which is not 0."""
        self.members.clear()
        self.offset = offset
        return self.next()


def open_tar(file: BinaryIO) -> Tar:
    """Open a tar, compressed or not, at its start.

    It is read from start to end, but members whose bytes nobody reads are skipped where the file is
    not compressed. Raises tarfile.ReadError for a file that is no tar.
    """
    return Tar(open_stream(file))


def tar_entries(archive: Tar) -> Iterator[tarfile.TarInfo]:
    """The entries of a tar, which are not kept in memory. Raises ReadError where it is broken."""
    while (entry := archive.next()) is not None:
        if archive.offset <= entry.offset or entry.size < 0:
            raise tarfile.ReadError("a header leads backwards")
        yield entry
        archive.members.clear()


def is_regular(entry: tarfile.TarInfo) -> bool:
    """Whether the entry is a file with bytes of its own.

    Types that POSIX does not define are files. Those of vendors have capital letters; the sparse
    files of GNU are files nevertheless.
    """
    if entry.size == 0 and entry.name.endswith("/"):
        return False  # a folder of an old archive
    is_unknown = entry.type not in tarfile.SUPPORTED_TYPES and not entry.type.isupper()
    return entry.isfile() or is_unknown


class Content:
    """The bytes of a regular entry. The archive is read on only after they are."""

    def __init__(self, archive: Tar, entry: tarfile.TarInfo) -> None:
        content = archive.extractfile(entry)
        assert content is not None  # the entry is a regular file
        self._content: IO[Any] = content
        self.size = entry.size
        self._head: bytes | None = None
        self._whole: bytes | None = None
        self._is_checked = False

    def head(self) -> bytes:
        """The first HEAD_BYTES bytes."""
        if self._head is None:
            self._head = b"".join(self._pieces(min(HEAD_BYTES, self.size)))
        return self._head

    def whole(self) -> bytes:
        """All bytes, which are kept."""
        if self._whole is None:
            head = self.head()
            self._whole = b"".join([head, *self._pieces(self.size - len(head))])
        return self._whole

    def check_end(self) -> None:
        """Raise ReadError if the last byte is missing. Nothing may be read afterwards."""
        if self.size > 0 and not self._is_checked:
            self._is_checked = True
            self._content.seek(self.size - 1)
            if not self._content.read(1):
                raise tarfile.ReadError("unexpected end of data")

    def _pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, in pieces: tarfile takes long for many sparse ones at once."""
        while size > 0:
            piece = self._content.read(min(size, PIECE))
            if not piece:
                raise tarfile.ReadError("unexpected end of data")
            yield piece
            size -= len(piece)
