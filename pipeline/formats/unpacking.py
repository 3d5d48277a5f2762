"""The bytes of an archive that may be compressed, read from start to end with bounded memory.

None of Python's own readers (3.11) does all of it. The streams of `tarfile` end at the first member
of a file, `gzip` takes what follows a member for damage, and `lzma` does not bound the memory of
its decoder.
"""

import bz2
import lzma
import re
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import pyarrow as pa

PIECE = 1 << 16  # compressed bytes that are read at a time
# Bytes that are unpacked at a time. Where the data is damaged, what a decoder was about to return
# is lost.
UNPACKED_PIECE = 1 << 14
MOST_DECODER_BYTES = 1 << 30  # memory of a decoder; `xz -9` needs 65 MiB
HEAD = 10  # bytes that show how a file is compressed
MOST_PADDING = 256 << 20  # bytes between the parts of an archive, and behind it, that are read


class ArchiveStream:
    """The bytes of an archive, for tarfile. It seeks backwards only where nothing is compressed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.allowance: int | None = None  # number of bytes that may be read; None: any
        self.last = b""  # what was read last
        self.strange = False  # whether the bytes end where the file goes on with something else

    def read(self, size: int) -> bytes:
        """The next bytes. Raises tarfile.ReadError if they are more than `allowance`."""
        if self.allowance is not None:
            if not 0 <= size <= self.allowance:
                raise tarfile.ReadError(f"a header announces {size} bytes")
            self.allowance -= size
        self.last = self._read(size)
        return self.last

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def _read(self, size: int) -> bytes:
        return self._file.read(size)


class _UnpackedStream(ArchiveStream, ABC):
    """The bytes of a compressed archive."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._pieces = self._unpack()
        self._rest = memoryview(b"")
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise tarfile.ReadError("a header leads backwards")
        while self._position < position and self._read(min(position - self._position, PIECE)):
            pass
        return self._position

    def _read(self, size: int) -> bytes:
        found: list[memoryview] = []
        while size > 0:
            if not self._rest:
                self._rest = memoryview(next(self._pieces, b""))
            if not self._rest:
                break
            found.append(self._rest[:size])
            self._rest = self._rest[size:]
            self._position += len(found[-1])
            size -= len(found[-1])
        return b"".join(found)

    @abstractmethod
    def _unpack(self) -> Iterator[bytes]:
        """The unpacked bytes of all members of the file (gzip), or of all streams (bzip2, xz)."""


class _StreamOfDecoders(_UnpackedStream):
    """The bytes of an archive that is compressed with gzip, bzip2 or xz."""

    def __init__(self, file: BinaryIO, magic: bytes, new_decoder: "Callable[[], _Decoder]") -> None:
        super().__init__(file)
        self._magic, self._new_decoder = magic, new_decoder

    def _unpack(self) -> Iterator[bytes]:
        packed = self._file.read(PIECE)
        while re.match(self._magic, packed):
            decoder = self._new_decoder()
            piece = _decode(decoder, packed)
            while piece or not decoder.eof:
                if piece:
                    yield piece
                if decoder.eof:
                    break
                needs_input = decoder.needs_input
                packed = self._file.read(PIECE) if needs_input else b""
                piece = _decode(decoder, packed)
                if needs_input and not packed and not piece and not decoder.eof:
                    raise tarfile.ReadError("the compressed data ends early")
            packed = self._skip_padding(decoder.unused_data)
        self.strange = bool(packed)

    def _skip_padding(self, packed: bytes) -> bytes:
        """`packed` and what follows it in the file, without zeros at its start."""
        for _ in range(MOST_PADDING // PIECE):
            packed = packed.lstrip(b"\0")
            if len(packed) >= HEAD:
                return packed
            more = self._file.read(PIECE)
            if not more:
                return packed
            packed += more
        raise tarfile.ReadError(f"more than {MOST_PADDING} zeros follow the compressed data")


class _ZstdStream(_UnpackedStream):
    """The bytes of an archive that is compressed with Zstandard, which Python 3.11 cannot read."""

    def _unpack(self) -> Iterator[bytes]:
        source = _Source(self._file)
        stream = pa.CompressedInputStream(pa.PythonFile(source, "r"), "zstd")
        while True:
            try:
                piece = stream.read(tarfile.BLOCKSIZE)  # Arrow loses what it has before an error
            except OSError as error:
                if source.error is not None:
                    raise source.error from error
                if self._position and str(error).endswith("Unknown frame descriptor"):
                    self.strange = True
                    return
                raise tarfile.ReadError(f"the compressed data is damaged: {error}") from error
            if not piece:
                return
            yield piece


class _Source:
    """A file that remembers its own error, to tell it from errors of who reads it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            self.error = error
            raise

    def close(self) -> None:
        """Arrow closes what it reads from. The file itself is closed by who opened it."""


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decoder with the methods that those of bz2 and lzma have. It compares checksums."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._damage: zlib.error | None = None

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail and self._damage is None

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """The next bytes. An error is raised after all bytes before it."""
        if self._damage is not None:
            raise self._damage
        packed = self._zlib.unconsumed_tail + data
        before = self._zlib.copy()
        try:
            return self._zlib.decompress(packed, max_length)
        except zlib.error as error:
            self._damage = error
            return _unpack_before_damage(before, packed)


def _unpack_before_damage(decoder: "zlib._Decompress", packed: bytes) -> bytes:
    found = b""
    while True:
        try:
            found += decoder.decompress(packed, tarfile.BLOCKSIZE)
        except zlib.error:
            return found
        packed = decoder.unconsumed_tail


def _lzma_decoder() -> _Decoder:
    return lzma.LZMADecompressor(memlimit=MOST_DECODER_BYTES)


# What compressed files start with. The name of its first member is at the start of a plain tar.
_DECODERS: tuple[tuple[bytes, Callable[[], _Decoder]], ...] = (
    (rb"\x1f\x8b\x08", _Gzip),
    (rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)", bz2.BZ2Decompressor),
    (rb"\xfd7zXZ\0", _lzma_decoder),
    (rb"\x5d\0\0(?!\0\0)", _lzma_decoder),  # the format before xz
)
_ZSTD = b"\x28\xb5\x2f\xfd"


def open_stream(file: BinaryIO) -> ArchiveStream:
    """The bytes of an archive from its start, unpacked if its first bytes show how."""
    file.seek(0)
    head = file.read(HEAD)
    file.seek(0)
    if head.startswith(_ZSTD):
        return _ZstdStream(file)
    for magic, new_decoder in _DECODERS:
        if re.match(magic, head):
            return _StreamOfDecoders(file, magic, new_decoder)
    return ArchiveStream(file)


def _decode(decoder: _Decoder, packed: bytes) -> bytes:
    """The next unpacked bytes. Raises tarfile.ReadError for damaged data."""
    try:
        return decoder.decompress(packed, UNPACKED_PIECE)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        if "Memory usage limit" in str(error):
            raise tarfile.ReadError(
                f"to unpack it takes more than {MOST_DECODER_BYTES >> 20} MiB of memory: compress "
                "it with a smaller dictionary (xz -9)"
            ) from error
        raise tarfile.ReadError(f"the compressed data is damaged: {error}") from error
