"""Inputs on which other tools failed, by public reports of their users; here each is labelled.

Each test names the report whose input it makes.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.storage.files import open_location
from tests.support.samples import jpeg, prepared, write_tar
from tests.support.web import FileHandler, served_files

UPRIGHT, TURNED = (120, 80), (80, 120)  # width and height


def rows_by_name(source: str | Path) -> dict[str, dict[str, Any]]:
    """The rows of all images of `source`, by the part of their ids behind it."""
    base = str(source) if "://" in str(source) else f"file://{source}"
    return {row["image_id"].removeprefix(base).lstrip("/#"): row for row in prepared(Path(source))}


def size(row: dict[str, Any]) -> tuple[int, int]:
    return row["width"], row["height"]


@pytest.mark.parametrize(
    ("member", "key"),
    [
        ("S_02.voice/S_02/sentences_VE1.jpg", "S_02.voice/S_02/sentences_VE1"),  # webdataset 288
        ("./235342 Track 2.0 (Clean).jpg", "235342 Track 2"),  # webdataset 237
        ("22.05.png", "22"),  # huggingface/datasets 7144
        ("k" * 200 + ".jpg", "k" * 200),  # webdataset 428: keys beyond 128 characters
    ],
)
def test_keys_with_dots_and_long_keys(member: str, key: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", {member: jpeg(), "z.json": b"{}"})
    (row,) = prepared(tar)
    assert (row["image_id"], row["status"]) == (f"file://{tar}#{key}", "ok")


def test_members_of_a_sample_that_are_not_adjacent(tmp_path: Path) -> None:
    """ray 44068: samples were cut in two, with equal keys."""
    names = ("000000.jpg", "000001.jpg", "000000.json", "000001.json")
    tar = write_tar(tmp_path / "t.tar", {n: jpeg() if n.endswith("g") else b"{}" for n in names})
    assert [row["image_id"].rpartition("#")[2] for row in prepared(tar)] == ["000000", "000001"]


def test_exif_with_its_prefix_twice(tmp_path: Path) -> None:
    """Pillow 8348: an error at the turn by EXIF cost the image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = jpeg(exif=b"Exif\0\0" + exif.tobytes())
    (tmp_path / "a.jpg").write_bytes(content)
    (row,) = prepared(tmp_path)
    assert (row["status"], size(row), row["orientation"]) == ("ok", TURNED, 6)


def test_png_whose_orientation_stands_in_a_text_block(tmp_path: Path) -> None:
    """Pillow 4529: macOS and ImageMagick write EXIF as hexadecimal text."""
    exif = Image.Exif()
    exif[0x0112] = 8
    data = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    text = f"\nexif\n{len(data):8}\n{data.hex()}\n"
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", text, zip=True)
    Image.new("RGB", UPRIGHT, "red").save(tmp_path / "a.png", pnginfo=info)
    (row,) = prepared(tmp_path)
    assert (row["status"], size(row), row["orientation"]) == ("ok", TURNED, 8)


@pytest.mark.parametrize("orientation", [3, 6])
def test_tiff_that_is_turned(orientation: int, tmp_path: Path) -> None:
    """Pillow 7381 and 8554: turned on load, and once more by the tag."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[:40, :60] = 255  # white in the corner at the top left, as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.tif", exif=exif)
    (row,) = prepared(tmp_path)
    found = np.frombuffer(row["pixels"], np.uint8).reshape(row["rows"], row["columns"], 3)
    white = found[2, -3], found[-3, -3], found[2, 2], found[-3, 2]
    corner = {6: 0, 3: 1}[orientation]  # at the top right, at the bottom right
    assert [bool((one > 200).all()) for one in white] == [k == corner for k in range(4)]


def test_keys_of_s3_with_plus_and_percent_signs(bucket: str) -> None:
    """duckdb-aws 96, aws-sdk-java 1946: a sign was encoded twice, or taken for a space."""
    names = ["a+b.jpg", "a b.jpg", "a%2Bb.jpg", "a%20b.jpg", "x:y.jpg", "[z].jpg", "q?u=1.jpg"]
    fs, root = open_location(bucket, "INPUT")
    name, _, prefix = root.partition("/")
    for number, key in enumerate(names):
        fs.call_s3("put_object", Bucket=name, Key=f"{prefix}/{key}", Body=jpeg(number))
    rows = prepared(bucket)  # type: ignore[arg-type]
    assert sorted(row["image_id"].removeprefix(f"{bucket}/") for row in rows) == sorted(names)
    assert {row["status"] for row in rows} == {"ok"}
    assert len({row["pixels"] for row in rows}) == len(names)


def test_names_with_emojis_and_combining_signs(tmp_path: Path) -> None:
    """libjxl 3731, sharp 406, QuartzImageIO 23: such files could not be opened."""
    names = ["🏖️/test.jpg", "໒꒰՞ ܸ. .ܸ՞꒱ა/t.jpg", "e\u0301.jpg", "\u00e9.jpg", "its…earth.jpg"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(number))
    found = rows_by_name(tmp_path)
    assert found.keys() == set(names)
    assert {row["status"] for row in found.values()} == {"ok"}


class Redirects(FileHandler):
    """Leads from `/n/name` to `/n-1/name`, and from `/0/name` to `/name`."""

    def do_GET(self) -> None:
        head, _, name = self.path.lstrip("/").partition("/")
        if head.isdigit():
            self.send_response(302)
            self.send_header("Location", f"/{int(head) - 1}/{name}" if int(head) else f"/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    do_HEAD = do_GET


def test_addresses_that_lead_on_several_times(tmp_path: Path) -> None:
    """img2dataset 442: a chain of redirects was a failure."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    with served_files(tmp_path, Redirects) as address:
        (tmp_path / "list.txt").write_text(f"{address}/5/a.jpg\n")
        (row,) = prepared(tmp_path / "list.txt")
    assert (row["image_id"], row["status"]) == (f"{address}/5/a.jpg", "ok")


def test_gray_images_of_16_bits_are_not_black(tmp_path: Path) -> None:
    """Pillow 3011: values of 12 bits became black in 8 bits."""
    ramp = np.linspace(0, 4095, 120 * 80).reshape(80, 120).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "TIFF")
    (tmp_path / "a.tif").write_bytes(file.getvalue())
    (row,) = prepared(tmp_path)
    found = np.frombuffer(row["pixels"], np.uint8)
    assert row["status"] == "ok"
    assert found.min() < 10 and found.max() > 245


def test_png_whose_first_text_is_larger_than_the_decoder_allows(tmp_path: Path) -> None:
    """Pillow 8363: a text of more than a megabyte cost the image."""
    file = io.BytesIO()
    Image.new("RGB", UPRIGHT, "red").save(file, "PNG")
    content = file.getvalue()
    body = b"zTXt" + b"k\0\0" + zlib.compress(b"x" * (3 << 20))
    block = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(content[:33] + block + content[33:])
    (row,) = prepared(tmp_path)
    assert (row["status"], size(row)) == ("ok", UPRIGHT)
