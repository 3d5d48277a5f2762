"""JPEG files that cost as much to read and decode as photos do.

A flat image decodes six times faster than a photo of its size, which has texture everywhere. Here
the texture is noise whose amplitude falls with its frequency, as that of photographed scenes does,
over the shapes and colours of a rendered scene. A decoder takes 73 to 76 MB/s of these on a core
that takes 80 MB/s of 55 photos of COCO (2026-11-26).
"""

import io
import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.bench.gpu.sizes import Size
from jobs.demo.scenes import render_scene

DISTINCT = 16  # number of different images; all photos are parts of these
# With these a photo of 1066 x 800 has 205 to 226 kB, and one of 640 x 480 some 80 to 88.
QUALITY, LUMINANCE, CHROMA = 85, 16.0, 4.0
Floats = NDArray[np.float32]


def write_photos(folder: Path, sizes: Sequence[Size], distinct: int = DISTINCT) -> None:
    """Write a JPEG file for each size, in their order, into a new folder.

    The files show `distinct` images. Those of one size are links to a few that differ: the size's
    share of all files, times `distinct`. Which file shows which image is drawn at random.
    """
    folder.mkdir()
    largest = max(height for height, _ in sizes), max(width for _, width in sizes)
    image = cache(partial(make_image, size=largest))
    of_size = {size: -(-distinct * files // len(sizes)) for size, files in Counter(sizes).items()}
    written: dict[tuple[Size, int], Path] = {}
    draw = random.Random(0)
    for index, size in enumerate(sizes):
        path = folder / f"{index:06}.jpg"
        # Each size begins at an image of its own, so that all are in use.
        number = (sum(size) + draw.randrange(of_size[size])) % distinct
        if earlier := written.get((size, number)):
            _link(earlier, path)
        else:
            path.write_bytes(encode(_cut(image(number), size, draw)))
            written[size, number] = path


def make_image(seed: int, size: Size) -> Image.Image:
    """A scene with the texture of a photo, in YCbCr."""
    height, width = size
    random_numbers = np.random.default_rng(seed)
    # The scene has half the size, because it has noise of its own, which the enlargement blurs.
    scene = render_scene(random_numbers, -(-width // 2), -(-height // 2)).pixels
    large = Image.fromarray(scene).resize((width, height), Image.Resampling.BICUBIC)
    planes = np.asarray(large.convert("YCbCr"), np.float32)
    noise = make_noise(random_numbers, size)
    texture = [LUMINANCE * noise]
    texture += [CHROMA * np.roll(noise, shift, (0, 1)) for shift in (height // 3, height // 2)]
    textured = (planes + np.stack(texture, axis=2)).clip(0, 255).astype(np.uint8)
    return Image.merge("YCbCr", [Image.fromarray(plane) for plane in np.moveaxis(textured, 2, 0)])


def make_noise(random_numbers: np.random.Generator, size: Size) -> Floats:
    """Make noise (height, width) with amplitude inverse to frequency and a deviation of 1."""
    height, width = size
    spectrum = np.fft.rfft2(random_numbers.standard_normal(size, np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # no offset
    noise = np.fft.irfft2(spectrum / frequency, size)
    return (noise / noise.std()).astype(np.float32)


def encode(image: Image.Image) -> bytes:
    """Encode a JPEG as cameras do, with colours at half the resolution."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()


def _cut(image: Image.Image, size: Size, draw: random.Random) -> Image.Image:
    """Cut out a part of that size, at a random position."""
    height, width = size
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def _link(earlier: Path, path: Path) -> None:
    try:
        os.link(earlier, path)
    except OSError:  # a file system without links, or a file with too many links
        shutil.copyfile(earlier, path)
