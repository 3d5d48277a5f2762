"""Labelled scenes of shapes, rendered from a seed: images for training and demo with known truth.

A scene is a textured background with one to eight shapes drawn on it, later ones on top, then
made to look like a photo. Textures scale with the image's shorter side, so that a scene of
256 x 340 and one of 900 x 1200 resized to it look alike.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Contour = NDArray[np.complex128]  # x + iy of a polygon's corners: (K,)
Window = tuple[slice, slice]

TURN = 2 * math.pi
MAX_OBJECTS = 8
EXTENTS = (1 / 20, 1 / 2)  # of a shape, as shares of the image's shorter side
SIDE_RANGE = (200, 1200)  # pixels of a side of an image of `random_size`
ASPECT = (0.7, 1.4)  # how far a shape is stretched along its own axes
# least visible share of an object's area, after later objects and the border hide parts
MIN_VISIBLE = 0.6
MIN_INSIDE = 0.75  # least share of an object's area that lies within the image
MIN_PIXELS = 12  # least visible pixels, so that the smallest object is a few pixels each way
MIN_CONTRAST = 100.0  # Euclidean RGB distance to the colours beneath an object
TEXTURE_SIDE = 256  # backgrounds are composed at this shorter side, then scaled up
PLACEMENTS = 12  # positions tried before an object is left out of a crowded image


@dataclass(frozen=True)
class Scene:
    """One image and its truth."""

    pixels: Bytes  # (H, W, 3) RGB
    boxes: Floats  # (N, 4) x_min, y_min, x_max, y_max in pixels, tight around what is visible
    labels: NDArray[np.int64]  # (N,) indices into SHAPES


def _arc(start: float, stop: float) -> Contour:
    """Points of the unit circle between two angles in radians: (96,)."""
    arc: Contour = np.exp(1j * np.linspace(start, stop, 96))
    return arc


_CIRCLE = _arc(0, TURN)
_HEART = _CIRCLE.imag**3 - 1j * np.polyval([-1, -2, -5, 13, 0], _CIRCLE).real / 16
# A disc minus one of radius 0.8 at 0.45; the circles meet at these angles about their centres.
_CRESCENT = np.concatenate([_arc(0.896, TURN - 0.896), 0.45 + 0.8 * _arc(TURN - 1.35, 1.35)])
_STAR = np.tile([1, 0.42], 5) * np.exp(0.2j * math.pi * np.arange(10))
_QUARTER = np.array([1 + 0.33j, 0.33 + 0.33j, 0.33 + 1j])  # a quarter of a cross
_ARROW = np.array([1, 0.9j, 0.32j, -1 + 0.32j, -1 - 0.32j, -0.32j, -0.9j])
_HOURGLASS = np.array([-0.9 - 1j, 0.9 - 1j, 0.15, 0.9 + 1j, -0.9 + 1j, -0.15])

# Closed contours; the second contour of a shape is a hole. Every shape is its own mirror image, and
# no two shapes become alike when they are turned or stretched by ASPECT.
_CONTOURS: dict[str, tuple[Contour, ...]] = {
    "circle": (_CIRCLE,),
    "ring": (_CIRCLE, 0.55 * _CIRCLE),
    "square": (np.array([-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j]),),
    "triangle": (np.exp(1j * TURN * np.arange(3) / 3),),
    "star": (_STAR,),
    "cross": (np.concatenate([_QUARTER * 1j**quarter for quarter in range(4)]),),
    "heart": (_HEART,),
    "crescent": (_CRESCENT,),
    "arrow": (_ARROW,),
    "hourglass": (_HOURGLASS,),
}
SHAPES: tuple[str, ...] = ("", *_CONTOURS)  # by label; 0 is no shape, as in COCO


@dataclass(frozen=True)
class _Cutout:
    """A shape cut to its own small patch, before it has a position and colours."""

    cover: Floats  # (h, w) share of each pixel that the shape covers
    edge: Floats  # (h, w) share of each pixel that its outline covers; zeros where it has none
    mask: NDArray[np.bool_]  # (h, w) pixels that count as the shape: at least half covered


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Draw width and height in pixels: shorter side in SIDE_RANGE, aspects up to 3:1 either way."""
    low, high = SIDE_RANGE
    shorter = int(rng.integers(low, high, endpoint=True))
    longer = min(high, round(shorter * _log_uniform(rng, 1, 3)))
    return (shorter, longer) if rng.random() < 0.5 else (longer, shorter)


def scene(seed: int, index: int, size: tuple[int, int] | None = None) -> Scene:
    """Render scene `index` of the endless set `seed`, of `size` (width, height) or a random one."""
    rng = np.random.default_rng([seed, index])
    return render_scene(rng, *(size or random_size(rng)))


def render_scene(
    rng: np.random.Generator,
    width: int,
    height: int,
    most: int = MAX_OBJECTS,
    extents: tuple[float, float] = EXTENTS,
) -> Scene:
    """Draw a scene of one to `most` shapes; the image depends on the arguments only.

    Each shape's longer extent is log-uniform within `extents`, shares of the shorter side. A
    crowded image may hold fewer shapes than the random number drawn for it, but never fewer than
    one.
    """
    canvas = _background(rng, width, height)
    ids = np.zeros((height, width), np.uint8)  # 0: background, n: the n-th object
    labels: list[int] = []
    areas: list[int] = []
    for _ in range(int(rng.integers(1, most, endpoint=True))):
        label = int(rng.integers(1, len(SHAPES)))
        size = min(width, height) * _log_uniform(rng, *extents)
        cutout = _cut(rng, _CONTOURS[SHAPES[label]], size)
        if place := _place(rng, cutout, ids, areas):
            on_canvas, on_patch = place
            _paint(rng, canvas[on_canvas], cutout, on_patch)
            labels.append(label)
            areas.append(int(cutout.mask.sum()))
            ids[on_canvas][cutout.mask[on_patch]] = len(labels)
    if not labels:
        return render_scene(rng, width, height, most, extents)
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(ids)]
    return Scene(_photograph(rng, canvas), np.array(boxes, "f4"), np.array(labels, np.int64))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _cut(rng: np.random.Generator, contours: tuple[Contour, ...], size: float) -> _Cutout:
    """Stretch, turn and scale a shape to a longer extent of `size` pixels, and rasterise it."""
    aspect, turn = math.sqrt(_log_uniform(rng, *ASPECT)), np.exp(1j * rng.uniform(0, TURN))
    turned = [(c.real * aspect + 1j * c.imag / aspect) * turn for c in contours]
    x, y = turned[0].real, turned[0].imag
    scale = size / max(np.ptp(x), np.ptp(y))
    factor = 4 if size < 100 else 2  # supersampling
    canvas = [(math.ceil(np.ptp(axis) * scale) + 2) * factor for axis in (x, y)]
    shift = complex(*rng.uniform(0.5, 1.5, 2)) - complex(x.min(), y.min()) * scale
    thick = round(2 * factor * size * rng.uniform(0.03, 0.08)) if rng.random() < 0.35 else 0

    cover, edge = (Image.new("L", (canvas[0], canvas[1])) for _ in range(2))
    for fill, contour in zip((255, 0), turned, strict=False):
        points = ((contour * scale + shift) * factor).view(np.float64).tolist()
        ImageDraw.Draw(cover).polygon(points, fill=fill)
        if thick:
            ImageDraw.Draw(edge).line([*points, *points[:4]], 255, thick, joint="curve")
    covered, edged = (np.asarray(m.reduce(factor)) * np.float32(1 / 255) for m in (cover, edge))
    return _Cutout(covered, edged, covered >= 0.5)


def _place(
    rng: np.random.Generator, cutout: _Cutout, ids: Bytes, areas: list[int]
) -> tuple[Window, Window] | None:
    """Find a position that leaves every object visible enough; windows of canvas and patch."""
    (height, width), (h, w) = ids.shape, cutout.mask.shape
    visible = np.bincount(ids.ravel(), minlength=len(areas) + 1)[1:]
    needed = np.maximum(MIN_VISIBLE * np.array(areas), MIN_PIXELS)
    needed_inside = max(MIN_INSIDE * cutout.mask.sum(), MIN_PIXELS)
    for _ in range(PLACEMENTS):
        left = int(rng.integers(-w // 5, width - w + w // 5, endpoint=True))
        top = int(rng.integers(-h // 5, height - h + h // 5, endpoint=True))
        on_canvas = (slice(max(top, 0), top + h), slice(max(left, 0), left + w))
        on_patch = (slice(max(-top, 0), height - top), slice(max(-left, 0), width - left))
        inside = cutout.mask[on_patch]
        hidden = np.bincount(ids[on_canvas][inside], minlength=len(areas) + 1)[1:]
        if inside.sum() >= needed_inside and (visible - hidden >= needed).all():
            return on_canvas, on_patch
    return None


def _paint(rng: np.random.Generator, under: Bytes, cutout: _Cutout, on_patch: Window) -> None:
    """Blend a shape in its own colours into `under`, the window of the canvas beneath it."""
    h, w = cutout.cover.shape
    row_step, column_step = -(-under.shape[0] // 6), -(-under.shape[1] // 6)
    beneath = under[::row_step, ::column_step].reshape(-1, 3).astype(np.float32)
    pattern = _fill_pattern(rng, h, w)[on_patch][..., None]  # in [-1, 1]
    fill = _contrasting(rng, beneath) + pattern * rng.uniform(-35, 35, 3).astype(np.float32)
    cover, edge = (share[on_patch][..., None] for share in (cutout.cover, cutout.edge))
    colour = fill + edge * (_contrasting(rng, beneath) - fill)
    under[:] = np.clip(under + cover * (colour - under), 0, 255)


def _contrasting(rng: np.random.Generator, beneath: Floats) -> Floats:
    """Draw a colour (3,) at least MIN_CONTRAST from all of `beneath` (K, 3), or nearly so."""
    candidates = rng.uniform(0, 255, (24, 3)).astype(np.float32)
    distance = np.linalg.norm(candidates[:, None] - beneath, axis=2).min(1)
    first_enough: Floats = candidates[np.minimum(distance, MIN_CONTRAST).argmax()]
    return first_enough


def _fill_pattern(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Draw a shape's own texture (height, width) in [-1, 1]: flat, gradient, stripes or noise."""
    kind = rng.choice(["flat", "gradient", "stripes", "noise"])
    if kind == "flat":
        return np.zeros((height, width), np.float32)
    if kind == "noise":
        return _noise(rng, height, width, rng.uniform(2, 8))
    cycles = 0.5 if kind == "gradient" else rng.uniform(2, 5)
    return _wave(rng, height, width, cycles)


def _wave(rng: np.random.Generator, height: int, width: int, cycles: float) -> Floats:
    """Make a plane sine wave (height, width) in [-1, 1] of `cycles` over the shorter side."""
    angle, phase = rng.uniform(0, TURN, 2).astype(np.float32)
    step = np.float32(TURN * cycles / min(height, width))
    y, x = np.ogrid[:height, :width]
    along = step * math.cos(angle) * x.astype("f4") + step * math.sin(angle) * y.astype("f4")
    wave: Floats = np.sin(along + phase)
    return wave


def _noise(rng: np.random.Generator, height: int, width: int, cells: float) -> Floats:
    """Make smooth noise (height, width) about [-1, 1] with `cells` cells over the shorter side."""
    cell = min(height, width) / cells
    shape = (max(2, round(height / cell)), max(2, round(width / cell)))
    coarse = Image.fromarray(rng.uniform(-1, 1, shape).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _background(rng: np.random.Generator, width: int, height: int) -> Bytes:
    """Make a background (height, width, 3): a field of patterns mapped to three colours."""
    scale = min(1.0, TEXTURE_SIDE / min(width, height))
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    field, roughness = np.zeros((h, w), np.float32), rng.uniform(0.3, 1.0)
    for cells in (3, 8, 24, 64):
        field += _noise(rng, h, w, cells * rng.uniform(0.7, 1.4)) * cells**-roughness
    field *= rng.uniform(0.3, 1) / np.abs(field).max()
    if rng.random() < 0.5:  # a gradient over the whole image
        field += _wave(rng, h, w, rng.uniform(0.2, 0.6)) * rng.uniform(0.3, 1)
    if rng.random() < 0.3:  # stripes
        field += _wave(rng, h, w, rng.uniform(3, 30)) * rng.uniform(0.1, 0.7)
    if rng.random() < 0.3:  # blobs with soft borders
        field += np.tanh(6 * _noise(rng, h, w, rng.uniform(4, 14))) * rng.uniform(0.1, 0.6)
    level = ((field - field.min()) * (255 / np.ptp(field))).astype(np.uint8)
    stops = np.clip(rng.uniform(10, 245, 3) + rng.uniform(-60, 60, (3, 3)), 0, 255)
    palette = np.stack([np.interp(np.arange(256), (0, 128, 255), stop) for stop in stops.T], 1)
    texture = Image.fromarray(palette.astype("u1")[level])
    return np.array(texture.resize((width, height), Image.Resampling.BICUBIC))


def _photograph(rng: np.random.Generator, canvas: Bytes) -> Bytes:
    """Make `canvas` look like a photo: blur, exposure, sensor noise and JPEG; (H, W, 3)."""
    if rng.random() < 0.3:
        radius = min(canvas.shape[:2]) * rng.uniform(0.001, 0.004)
        canvas = np.asarray(Image.fromarray(canvas).filter(ImageFilter.GaussianBlur(radius)))
    noisy = rng.standard_normal(canvas.shape, np.float32)
    noisy *= np.float32(_log_uniform(rng, 1, 12))
    noisy += canvas * np.float32(rng.uniform(0.8, 1.15))
    photo, encoded = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), io.BytesIO()
    photo.save(encoded, "JPEG", quality=int(rng.integers(35, 95, endpoint=True)))
    return np.array(Image.open(encoded))
