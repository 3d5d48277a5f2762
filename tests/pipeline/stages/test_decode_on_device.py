"""JPEGs that the detector decodes on its device, here a CPU, get the rows that they get anyway."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from model.jpeg import Jpeg, Refused, check_decoder, decode
from model.predictor import Predictor
from model.resize import AS_DISPLAYED
from pipeline.schema import DECODED, ENCODED, PREPARED
from pipeline.stages import detect
from pipeline.stages.decode import decode_row, header_row
from pipeline.stages.detect import Detector, DetectorSpec
from pipeline.stages.prepare import Preparer
from pipeline.stages.recovery import Image as PreparedImage
from pipeline.stages.stage import receipt_of
from pipeline.stages.tiling import MAX_PIXELS, Tiling
from pipeline.storage.errors import CommandFailed
from tests.support.parameters import others_slow
from tests.support.samples import RULE, jpeg, preparer

TESTDATA = Path(__file__).parents[4] / "shared" / "testdata"
CPU = torch.device("cpu")


def turned(orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(orientation, exif=exif, **options)


def gray() -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg(9))).convert("L").save(file, "JPEG")
    return file.getvalue()


def as_format(format: str, mode: str = "RGB", size: tuple[int, int] = (120, 80)) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg(7))).convert(mode).resize(size).save(file, format)
    return file.getvalue()


def damaged(content: bytes) -> bytes:
    """A JPEG, plain by its header, whose last Huffman table is none."""
    at = content.rindex(b"\xff\xc4")
    return content[: at + 5] + b"\xff" * 16 + content[at + 21 :]


JPEGS = [jpeg(1), *(turned(n) for n in range(1, 9)), jpeg(2, progressive=True), gray()]
JPEGS += [jpeg(3, subsampling=0), jpeg(4, subsampling=1), as_format("JPEG", size=(300, 90))]
OTHERS = [as_format("PNG"), as_format("JPEG", "CMYK"), jpeg(5)[:900]]
OTHERS += [as_format("JPEG", size=(1, 1)), b"", b"\xff\xd8\xff", as_format("WEBP")]
IMAGES = [*JPEGS, *OTHERS]
SOME = [0, 6, JPEGS.index(gray()), len(JPEGS) - 1, *range(len(JPEGS), len(JPEGS) + 3)]


def encoded(images: list[bytes]) -> pa.Table:
    rows = [
        {"shard": "s", "index_in_shard": number, "status": "ok", "encoded": content}
        for number, content in enumerate(images)
    ]
    return pa.Table.from_pylist(rows, schema=ENCODED)


@pytest.fixture(scope="module")
def leaving() -> Iterator[Preparer]:
    preparer = Preparer(RULE, enlarge=False, leave_jpegs=True)
    yield preparer
    preparer.child.close()


def detector_of_jpegs() -> Detector:
    spec = DetectorSpec("shapes-tiny", None, "cpu", "fp32", 0.0, None, "decode")
    return Detector(replace(spec, preparer=preparer))


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    monkeypatch.setattr(Predictor, "resize", RULE)
    return detector_of_jpegs()


def bytes_of(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def rows_of(detected: pa.Table) -> list[dict[str, Any]]:
    names = ["index_in_shard", "status", "error", "width", "height", "orientation", "boxes"]
    rows: list[dict[str, Any]] = detected.select(names).to_pylist()
    return rows


def test_plain_jpegs_cross_as_they_are_and_all_others_as_pixels(leaving: Preparer) -> None:
    table = pa.concat_tables(leaving(encoded(IMAGES)))
    assert table.schema == PREPARED
    for number, row in enumerate(table.to_pylist()):
        is_left = number < len(JPEGS)
        assert row["encoded"] == (IMAGES[number] if is_left else None)
        expected = decode_row(IMAGES[number], RULE, MAX_PIXELS, enlarge=False)
        for name in ("status", "error", "width", "height", "orientation"):
            assert row[name] == expected.get(name), (number, name)
        assert (row["pixels"], row["rows"]) == (
            (None, None)
            if is_left
            else (expected.get("pixels") and bytes(expected["pixels"]), expected.get("rows"))
        )
        assert row["encoded_bytes"] == len(IMAGES[number])


@pytest.mark.parametrize("numbers", others_slow([SOME, range(len(IMAGES))]))
def test_the_detector_gives_the_rows_of_images_with_pixels(
    numbers: Sequence[int], leaving: Preparer, detector: Detector
) -> None:
    """Both decoders are libjpeg-turbo here, so the boxes are equal, bit for bit."""
    images = encoded([IMAGES[number] for number in numbers])
    left, whole = (pa.concat_tables(prepare(images)) for prepare in (leaving, preparer()))
    found = detector(left)
    rows = rows_of(found)
    assert rows == rows_of(detector(whole))
    jpegs = [row for row, number in zip(rows, numbers, strict=True) if number < len(JPEGS)]
    assert len(jpegs) >= 4 and all(len(row["boxes"]) > 50 for row in jpegs)
    assert found["is_refused"].to_pylist() == [False] * len(images)


def test_what_the_device_refuses_is_decoded_elsewhere_and_costs_no_other(
    leaving: Preparer, detector: Detector
) -> None:
    images = encoded([jpeg(1), damaged(jpeg(11)), jpeg(2)])
    left, whole = (pa.concat_tables(prepare(images)) for prepare in (leaving, preparer()))
    assert left["encoded"].null_count == 0  # its header tells nothing
    found = detector(left)
    assert [row["status"] for row in rows_of(found)] == ["ok", "undecodable", "ok"]
    assert rows_of(found) == rows_of(detector(whole))
    assert found["is_refused"].to_pylist() == [False, True, False]
    assert receipt_of(found).refused == 1


@pytest.mark.parametrize(
    "lie",
    [
        {"orientation": 9},
        {"width": None},
        {"width": 2**20, "height": 2**20},
        {"error": "no"},
        {"rows": 5, "columns": 5},
    ],
)
def test_the_answer_of_who_read_the_header_is_checked(
    lie: dict[str, Any], leaving: Preparer
) -> None:
    row = header_row(jpeg(1), RULE, MAX_PIXELS, None)
    assert row is not None
    row = {**dict.fromkeys(DECODED.names), **row}
    assert leaving.child.answers.is_plausible(row)
    assert not leaving.child.answers.is_plausible({**row, **lie})
    assert not preparer().child.answers.is_plausible(row)  # of it nobody asked that


def test_a_jpeg_during_which_its_process_ended_twice_is_refused(detector: Detector) -> None:
    recovering = detector.batcher.detector
    image = PreparedImage("ends", Jpeg(torch.empty(0, dtype=torch.uint8), (80, 120), 1), (80, 120))
    for ended in (0, 1, 2):
        refused = recovering.refuse(image)
        assert (refused is not None and refused.is_refused) == (ended == 2)
        recovering.journal.begin("ends")
    recovering.journal.end("ends")


def test_tiled_images_and_large_ones_are_not_left() -> None:
    content = jpeg(1)
    assert header_row(content, RULE, 120 * 80, Tiling(120)) is not None
    assert header_row(content, RULE, 120 * 80, Tiling(119)) is None
    assert header_row(content, RULE, 120 * 80 - 1, None) is None


def test_a_torchvision_without_the_decoder_ends_the_run_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_decoder(CPU)

    def refuse(device: torch.device) -> None:
        raise Refused("not compiled with nvJPEG support")

    monkeypatch.setattr(detect, "check_decoder", refuse)
    with pytest.raises(CommandFailed, match="--decode gpu: torchvision decodes no JPEG on cpu"):
        detector_of_jpegs()(PREPARED.empty_table())


REAL = [("nasty", "jpeg*/*"), ("nasty", "exif_orientation/*.jpg"), ("coco", "images/*/*[17].jpg")]


@pytest.mark.skipif(not TESTDATA.exists(), reason="there is no ../shared/testdata")
@pytest.mark.parametrize(("folder", "pattern"), REAL)
def test_real_files_have_equal_pixels_or_go_the_present_way(folder: str, pattern: str) -> None:
    """libjpeg-turbo decodes both here. What fails, or is no plain JPEG, is not left to a device."""
    left = 0
    for path in sorted((TESTDATA / folder).glob(pattern)):
        content = path.read_bytes()
        expected = decode_row(content, AS_DISPLAYED, MAX_PIXELS)
        header = header_row(content, AS_DISPLAYED, MAX_PIXELS, None)
        if header is None:
            continue
        left += 1
        assert header == {name: expected[name] for name in header}, path
        size = header["height"], header["width"]
        found = decode(Jpeg(bytes_of(content), size, header["orientation"]), CPU)
        pixels = np.frombuffer(expected["pixels"], np.uint8).reshape(*size, 3)
        assert np.array_equal(found.numpy(), pixels), path
    assert left > 5
