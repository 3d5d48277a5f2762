"""Images that are small as files and large as images: they hold up no others."""

import asyncio
import io
import struct
from collections.abc import Sequence
from typing import Any

import pytest
import requests
from PIL import Image

from jobs.serve.deploy import large_at_once
from jobs.serve.engine.admission import PIXELS_PER_IMAGE, Admission
from jobs.serve.engine.engine import Engine, Labelled, Overloaded
from jobs.serve.engine.joining import Joiner
from jobs.serve.engine.pixels import MOST_PARTS, MOST_PER_BYTE, UNKNOWN, pixels_of
from jobs.serve.settings.settings import ApiSettings
from tests.jobs.serve.test_bodies import CAT, Standing, body_of, post
from tests.support.coroutines import run_coroutine
from tests.support.serving import MODEL, data_uri, scene_file, serving

WIDTH, HEIGHT = 300, 200


def image_file(format: str, width: int = WIDTH, height: int = HEIGHT, **options: Any) -> bytes:
    file = io.BytesIO()
    mode = "L" if width > 3000 else "RGB"
    Image.new(mode, (width, height)).save(file, format, **options)
    return file.getvalue()


LARGE = image_file("PNG", 6000, 5000)
MOST = 100_000_000  # pixels of an image


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": bytes(60_000)}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0" + bytes(50)}),
    ],
)
def test_pixels_of_a_head(format: str, options: dict[str, Any]) -> None:
    encoded = image_file(format, **options)
    assert pixels_of(encoded, MOST) == WIDTH * HEIGHT
    for end in range(0, len(encoded), 7):
        assert pixels_of(encoded[:end], MOST) in (WIDTH * HEIGHT, min(UNKNOWN, end * MOST_PER_BYTE))


def test_what_is_unknown_counts_as_large_unless_it_is_tiny() -> None:
    for format in ("TIFF", "GIF", "BMP", "TGA"):
        assert pixels_of(image_file(format) + bytes(3000), MOST) == UNKNOWN
    assert pixels_of(b"no image", MOST) == 8 * MOST_PER_BYTE and pixels_of(b"", MOST) == 0


def test_a_head_of_too_many_parts_counts_as_the_most_that_is_allowed() -> None:
    encoded = image_file("JPEG")
    comments = b"\xff\xfe\x00\x03a" * (MOST_PARTS + 1)
    assert pixels_of(encoded[:2] + comments + encoded[2:], MOST) == MOST
    encoded, chunk = image_file("PNG"), struct.pack(">I4sI", 0, b"teXt", 0)
    assert pixels_of(encoded[:33] + chunk * MOST_PARTS + encoded[33:], MOST) == MOST


def test_the_largest_of_several_sizes_counts() -> None:
    small, large = image_file("PNG"), image_file("PNG", 6000, 5000)
    assert pixels_of(small[:33] + large[8:], MOST) == 6000 * 5000
    small, large = image_file("JPEG"), image_file("JPEG", 6000, 5000)
    assert pixels_of(small[: small.index(b"\xff\xda")] + large[2:], MOST) == 6000 * 5000


class Calls:
    """Large images take until they are let go, others nothing."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.go = asyncio.Event()

    async def __call__(self, images: Sequence[bytes]) -> tuple[list[Labelled], float]:
        large = images[0] == LARGE
        assert not large or len(images) == 1
        self.now += large
        self.most = max(self.most, self.now)
        await (self.go.wait() if large else asyncio.sleep(0))
        self.now -= large
        return [Labelled("ok")] * len(images), 0.01


def test_small_images_pass_large_ones_by() -> None:
    calls = Calls()

    async def ask() -> None:
        joiner = Joiner(calls, 8, large=2)
        large = [asyncio.create_task(joiner.detect([(LARGE, 6000 * 5000)] * 4)) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(3):
            await joiner.detect([(b"one", 1)] * 5)
        assert not any(task.done() for task in large)
        calls.go.set()
        await asyncio.gather(*large)

    run_coroutine(ask())
    assert calls.most == 2, "of eight calls"


@pytest.mark.parametrize(
    ("detectors", "decoders", "apis", "large"),
    [(1, 1, 1, 1), (2, 8, 1, 2), (32, 32, 16, 1), (8, 32, 2, 8), (16, 64, 8, 7)],
)
def test_large_images_leave_a_decoder_free(
    detectors: int, decoders: int, apis: int, large: int
) -> None:
    assert large_at_once(detectors, decoders, apis) == large
    assert large * apis < decoders or decoders == 1


def test_requests_take_turns() -> None:
    order: list[bytes] = []

    async def call(images: Sequence[bytes]) -> tuple[list[Labelled], float]:
        order.extend(images)
        await asyncio.sleep(0)
        return [Labelled("ok")] * len(images), 1.0

    async def ask() -> None:
        joiner = Joiner(call, 1)
        await asyncio.gather(joiner.detect([(b"a", 1)] * 6), joiner.detect([(b"b", 1)] * 2))

    run_coroutine(ask())
    assert order[:5] == [b"a", b"a", b"b", b"a", b"b"]


def test_pixels_that_wait_are_bounded() -> None:
    admission = Admission(4)
    alone = admission.admit(1, 100 * PIXELS_PER_IMAGE)  # which may have any number
    with alone, pytest.raises(Overloaded), admission.admit(1, 1):
        pass
    with admission.admit(1, 3 * PIXELS_PER_IMAGE), admission.admit(1, PIXELS_PER_IMAGE):
        assert admission.pixels == 4 * PIXELS_PER_IMAGE
    assert admission.pixels == 0


def test_a_request_has_so_many_pixels(engine: Engine) -> None:
    """What would be too much is an item with an error, and what comes behind it may fit."""
    scene = scene_file()
    wide = image_file("PNG", 1500, 1000)
    most = 2 * pixels_of(scene, MOST)
    assert pixels_of(wide, MOST) > pixels_of(scene, MOST)
    settings = ApiSettings(max_request_pixels=most, max_pixels=most)
    with serving(settings, engine) as address:
        images = [data_uri(one) for one in (scene, wide, scene)]
        answer = requests.post(
            f"{address}/v1/detections", json={"model": MODEL, "images": images}, timeout=30
        )
    data = answer.json()["data"]
    codes = [one["error"] and one["error"]["code"] for one in data]
    assert codes == [None, "too_many_pixels", None]
    assert f"and {most} are allowed" in data[1]["error"]["message"]


class Asked(Standing):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__(CAT)
        self.asked: list[tuple[bytes, int]] = []

    async def detect_all(
        self, images: Sequence[bytes], pixels: Sequence[int] = ()
    ) -> list[Labelled]:
        self.asked += zip(images, pixels, strict=True)
        return await super().detect_all(images, pixels)


def test_an_image_that_claims_more_than_is_allowed_counts_as_nothing() -> None:
    """Else 45 bytes would keep the images of all others out."""
    huge = image_file("PNG")[:16] + struct.pack(">II", 1 << 31, 1 << 31) + bytes(9)
    huge += struct.pack(">I4sI", 0, b"IDAT", 0)
    scene, engine = scene_file(), Asked()
    with serving(ApiSettings(), engine) as address:
        images = [data_uri(one) for one in (huge, scene)]
        assert post(address, json=body_of(*images)).status_code == 200
    assert engine.asked == [(huge, 0), (scene, pixels_of(scene, MOST))]


def test_an_image_of_unknown_size_is_left_to_the_decoder() -> None:
    engine = Asked()
    with serving(ApiSettings(max_pixels=30_000), engine) as address:
        answer = post(address, json=body_of(data_uri(image_file("GIF")))).json()
    assert answer["data"][0]["status"] == "ok"
    assert [pixels for _, pixels in engine.asked] == [30_000]
