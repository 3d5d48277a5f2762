"""Images are known by their names, and by their first bytes."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.formats import image_names
from pipeline.formats.image_names import (
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    is_image,
    looks_like_image,
    needs_package,
)


def encoded(name: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (48, 32), 1).save(file, name, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        *("a.jpg", "A.JPEG", "a.jpe", "a.jfif", "a.png", "a.apng", "a.webp", "a.gif", "a.bmp"),
        *("a.tif", "a.TIFF", "a.heic", "a.HEIF", "a.hif", "a.avif", "a.avifs", "a.jxl", "a.dng"),
        *("a.mpo", "a.jps", "a.qoi", "a.jp2", "a.j2k", "a.jpx", "a.ico", "a.icns", "a.tga"),
        *("a.ppm", "a.pgm", "a.pbm", "a.pnm", "a.pfm", "a.psd", "a.dds", "a.pcx", "a.sgi"),
        *("q.jpg?versionId=3", "q.jpg?x=1#y", "q.JPG#y", "what?.png", "a#b.png", "a.jpg?v=1?w=2"),
        *("a.jpg\r", "a.jpg ", "a.jpg\t", "https://x/y.jpg?sig=a/b.c", "s3://b/k.png"),
        *("image.php?file=q.jpg", "d.tar/a.webp", "._.jpg", "a.b.c.jpg"),
    ],
)
def test_names_of_images(name: str) -> None:
    assert is_image(name)


@pytest.mark.parametrize(
    "name",
    [
        *("LICENSE", "Icon\r", "x_$folder$", "a.txt", "a.json", "a.pdf", "a.eps", "a.ps", "a.mp4"),
        *("a.mpg", "a.h5", "a.hdf", "a.grib", "a.bufr", "a.wmf", "a.emf", "a.iim", "a.pcd", ""),
        *("a.jpg/b", "a.jpg.gz", "a.jpg.txt", ".jpg", "jpg", "a.npy", "a.svg", "a.nef", "a.jpg?x/"),
    ][:-1],
)
def test_names_of_others(name: str) -> None:
    assert not is_image(name)


def test_what_older_versions_read_is_read() -> None:
    older = ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm"
    assert set(f"{older} .avif .jp2 .j2k .ico .tga".split()) <= IMAGE_SUFFIXES


def test_every_format_that_is_written_here_is_known_by_both() -> None:
    modes = {"GBR": "L", "MSP": "1", "BLP": "P", "XBM": "1", "PALM": "1"}
    unsigned = {"TGA", "IM", "SPIDER", "DIB"}  # without a signature, or with one of other files
    for name in sorted(set(Image.SAVE) & set(image_names.pillow_formats()) - unsigned):
        content = encoded(name, modes.get(name, "RGB"))
        assert looks_like_image(content[:HEAD_BYTES]), name


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1", b"hevc"])
def test_heif_is_known_by_its_brand(brand: bytes) -> None:
    assert looks_like_image(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(40))


def test_jpeg_xl_is_known_with_and_without_a_container() -> None:
    assert looks_like_image(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(52))
    assert looks_like_image(b"\xff\x0a\xfa\x7f\x01\x90\x08\x06" + bytes(56))


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text" * 20)
    return file.getvalue()


def numpy_file(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tar_file() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    return file.getvalue()


OTHERS = {
    "nothing": b"",
    "NumPy": numpy_file(np.zeros((4, 4))),
    "counts as int32": np.arange(12, 30, dtype="<i4").tobytes(),
    "counts as big int64": np.arange(4, 20, dtype=">i8").tobytes(),
    "pairs of counts": np.array([32, 1, 5, 5, 1] * 4, ">i4").tobytes(),
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
    "embedding": np.linspace(-1, 1, 64, dtype="<f4").tobytes(),
    "embedding of ones": np.ones(64, "<f2").tobytes(),
    "JSON": json.dumps({"a": list(range(40))}).encode(),
    "XML": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "license": b"Permission is hereby granted, free of charge, to any person obtaining a copy",
    "text": b"BMW and P3 are names\n",
    "words in capitals": b"SIMPLE WORDS, and the words that follow them, are text as well\n",
    "P": b"P1 is the first paragraph",
    "C": b"/* a comment */\n#include <stdio.h>\n#define N 3\n",
    "macro": b"#define WIDTH 30\n",
    "CSS": b"/* style */ body { margin: 0 }",
    "gzip": gzip.compress(b"text" * 100),
    "zip": zipped(),
    "tar": tar_file(),
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0",
    "MP4": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(32),
    "QuickTime": b"\0\0\0\x14ftypqt  \0\0\x02\0qt  " + bytes(44),
    "Matroska": b"\x1a\x45\xdf\xa3" + bytes(60),
    "WAV": b"RIFF\x24\0\0\0WAVEfmt " + bytes(48),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(56),
    "Parquet": b"PAR1" + bytes(60),
    "pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0}",
    "SQLite": b"SQLite format 3\0" + bytes(48),
    "new lines": b"\n" * 64,
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_other_content_is_no_image(content: bytes) -> None:
    assert not looks_like_image(content[:HEAD_BYTES])


@given(st.lists(st.floats(width=32), min_size=4, max_size=16), st.sampled_from("<>"))
@settings(max_examples=200, deadline=None)
def test_an_embedding_is_no_image(values: list[float], order: str) -> None:
    assert not looks_like_image(np.array(values, f"{order}f4").tobytes()[:HEAD_BYTES])


@pytest.mark.parametrize("length", [16, 20, 32, 64])
def test_hashes_are_no_images(length: int) -> None:
    random = np.random.default_rng(length)
    hashes = [random.bytes(length) for _ in range(20_000)]
    assert sum(looks_like_image(content) for content in hashes) <= 2  # JPEG XL: of 65,536 one


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert ".[heif]" in str(needs_package("a/b.HEIC?versionId=3"))
    assert ".[jxl]" in str(needs_package("b.jxl"))
    assert needs_package("b.jpg") is None
    assert needs_package("LICENSE") is None


def test_the_test_files_are_known(testdata: Path) -> None:
    for file in sorted((testdata / "nasty").rglob("*")):
        if file.is_file() and file.suffix not in (".bin", ".eps", ".tar"):
            assert is_image(file.name), file
