"""JPEGs are decoded on a device, a GPU where there is one, upright and alone; batches take them."""

import importlib.util
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from model.detector import Detections
from model.jpeg import Jpeg, Refused, decode
from model.predictor import Predictor
from model.preprocess import form_batch
from model.resample import resize_pixels
from model.zoo import create_model
from tests.support.samples import jpeg

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# By which pixels may differ in the mean: nvJPEG enlarges colours otherwise than libjpeg-turbo.
MOST = 6.0 if DEVICE.type == "cuda" else 0.0


def content_of(image: Image.Image, orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    """An image all of whose corners differ."""
    ramps = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack((*ramps, ramps[0][::-1] / 2), axis=2).astype(np.uint8))


def left(content: bytes, displayed: tuple[int, int], orientation: int = 1) -> Jpeg:
    return Jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), displayed, orientation)


def shown(content: bytes) -> Tensor:
    """The pixels that Pillow shows."""
    with Image.open(io.BytesIO(content)) as file:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(file).convert("RGB")))


def distance(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one.cpu().float() - other.float()).abs().mean())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_upright(orientation: int) -> None:
    content = content_of(smooth(40, 24), orientation)
    size = (24, 40) if orientation < 5 else (40, 24)
    assert distance(decode(left(content, size, orientation), DEVICE), shown(content)) <= MOST


def test_a_gray_jpeg_gets_three_equal_channels() -> None:
    content = content_of(smooth(33, 17).convert("L"), 6)
    found = decode(left(content, (33, 17), 6), DEVICE)
    assert distance(found, shown(content)) <= MOST
    assert torch.equal(found[..., 0], found[..., 1]) and torch.equal(found[..., 0], found[..., 2])


def test_an_image_has_the_same_pixels_whatever_comes_before_it() -> None:
    contents = [jpeg(seed, subsampling=seed % 3) for seed in range(6)]
    jpegs = [left(content, (80, 120)) for content in contents]
    there = [decode(one, DEVICE).cpu() for one in jpegs]
    back = [decode(one, DEVICE).cpu() for one in reversed(jpegs)]
    assert all(map(torch.equal, there, reversed(back)))


@pytest.mark.parametrize(("displayed", "orientation"), [((80, 121), 1), ((80, 120), 6)])
def test_a_header_that_lied_is_refused(displayed: tuple[int, int], orientation: int) -> None:
    """The child that read the header may have been taken over."""
    with pytest.raises(Refused, match="its header says"):
        decode(left(jpeg(1), displayed, orientation), DEVICE)


def test_what_is_no_jpeg_is_refused() -> None:
    with pytest.raises(Refused):
        decode(left(b"\xff\xd8\xff" + bytes(50), (80, 120)), DEVICE)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_a_batch_has_jpegs_that_become_smaller_and_larger_beside_images_with_pixels() -> None:
    predictor = Predictor(create_model("shapes-tiny", device=str(DEVICE)), str(DEVICE), count=3)
    predictor.pads, predictor.count, predictor.enlarges = True, 3, True
    one = left(content_of(smooth(20, 10)), (10, 20))
    pixels = torch.randint(0, 256, (3, 4, 3), dtype=torch.uint8)
    targets = [(4, 9), (12, 24), (6, 8)]
    batch, valid, sources = form_batch([one, one, pixels], predictor, targets)
    assert batch.device.type == DEVICE.type
    assert valid is not None and valid.tolist() == list(map(list, targets))
    assert sources is not None and sources.tolist() == [[4, 9], [10, 20], [3, 4]]
    whole = decode(one, DEVICE).cpu().contiguous()
    for own, image in zip(batch.cpu(), [resize_pixels(whole, (4, 9)), whole, pixels], strict=True):
        assert torch.equal(own[: image.shape[0], : image.shape[1]], image)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
def test_boxes_are_those_of_the_decoded_pixels() -> None:
    """Batch after batch, so that a stream that did not wait would show."""
    net = create_model("shapes-tiny", device="cuda", padding="invariant")
    predictor = Predictor(net, "cuda", count=4)
    targets = [predictor.resize.target_size(80, 120)] * 4
    for first in range(0, 40, 4):
        jpegs = [left(jpeg(seed), (80, 120)) for seed in range(first, first + 4)]
        pixels = [decode(one, DEVICE).cpu().contiguous() for one in jpegs]
        found, expected = (
            detected(predictor, form_batch(images, predictor, targets))
            for images in (jpegs, pixels)
        )
        assert torch.equal(found.boxes, expected.boxes)
        assert torch.equal(found.scores, expected.scores)


def detected(
    predictor: Predictor, batch: tuple[Tensor, Tensor | None, Tensor | None]
) -> Detections:
    pixels, valid, sources = batch
    sizes = torch.tensor([[80, 120]] * predictor.count)
    return predictor.submit(pixels, valid, sizes, sources).result()
