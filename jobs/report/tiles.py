"""The images of a run's page: fetched, with their boxes drawn, and captioned."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.report.captions import shorten_names
from jobs.report.drawing import Box, cut_around, data_uri, draw_boxes
from jobs.report.imported import Imported
from jobs.report.pictures import FetchedImage, PictureReader, Place, Planned
from jobs.report.samples import KINDS, Samples, Shown
from pipeline.schema import Shard

# People can tell these colours apart on any photo, and black text is readable on each.
COLOURS = (
    "#ffd166", "#7bdff2", "#ff9b85", "#b8f2a0", "#d9b8ff",
    "#ffb3d1", "#9ad1ff", "#f0e68c", "#8ef0c9", "#ffc49b",
)  # fmt: skip
LEAST_RATIO, MOST_RATIO = 0.5, 2.5  # limits of width divided by height


@dataclass(frozen=True)
class Tile:
    """An image of the page: a JPEG as a URL, or the reason why there is none."""

    shown: Shown
    name: str  # its image_id below INPUT, or a short end of it
    ratio: float  # width divided by height
    source: str  # data URL of the JPEG; "" where there is none
    why: str  # why there is no JPEG; "" where there is one


@dataclass(frozen=True)
class Sheet:
    """The tiles of a page, by heading, and in pairs by class."""

    groups: list[tuple[str, list[Tile]]]
    by_class: list[tuple[str, list[Tile]]]
    why_none: str  # why no image at all could be had; "" where one could, or none was chosen


def make_sheet(
    samples: Samples,
    source: str,
    planned: Planned,
    imported: Imported | None,
    reader: PictureReader,
) -> Sheet:
    """Fetch the images of a page, each once, and draw the boxes of each sample.

    `source` is where the images lie; they are named by their paths below it.
    """
    every = [*samples.images, *(one for _, some in samples.by_class for one in some)]
    fetched = _fetch(every, planned, imported, reader)
    names = _name(every, source)

    def make_tile(one: Shown, cut: bool) -> Tile:
        return _make_tile(one, fetched[one.shard, one.index], names[_key(one)], cut)

    tiles = [make_tile(one, cut=False) for one in samples.images]
    groups = [
        (heading, [tile for tile in tiles if tile.shown.kind == kind])
        for kind, (heading, _, _) in KINDS.items()
    ]
    by_class = [
        (label, [make_tile(one, cut=True) for one in some]) for label, some in samples.by_class
    ]
    reasons = {key: image.why for key, image in fetched.items() if image.pixels is None}
    return Sheet(
        [(heading, members) for heading, members in groups if members],
        by_class,
        "; ".join(dict.fromkeys(reasons.values())) if len(reasons) == len(fetched) else "",
    )


def _key(one: Shown) -> tuple[str, str]:
    return one.shard, one.image_id


def _name(every: Iterable[Shown], source: str) -> dict[tuple[str, str], str]:
    """Name images by shard and image_id. Rows of Parquet files may have the ids of others."""
    keys = {_key(one) for one in every}
    times = Counter(image_id for _, image_id in keys)
    full = {
        (shard, image_id): f"{shard}#{image_id}" if times[image_id] > 1 else image_id
        for shard, image_id in keys
    }
    short = shorten_names(full.values(), [source])
    return {key: short[name] for key, name in full.items()}


def _fetch(
    every: Sequence[Shown], planned: Planned, imported: Imported | None, reader: PictureReader
) -> dict[tuple[str, int], FetchedImage]:
    """Fetch images, by shard and index."""
    shards: dict[tuple[str, int], Shard | None] = {}
    if imported is None:
        found = planned.find(sorted({one.shard for one in every}))
        shards.update({(one.shard, one.index): found.get(one.shard) for one in every})
    else:
        shards.update({(one.shard, one.index): imported.shard(one.uri) for one in every})
    unknown = FetchedImage(None, "no run that read it is known")
    images = dict.fromkeys(shards, unknown)
    keys = {key: shard for key, shard in shards.items() if shard is not None}
    places = [Place(shard, 0 if imported else key[1]) for key, shard in keys.items()]
    images.update(zip(keys, reader.fetch(places), strict=True))
    return images


def _make_tile(one: Shown, image: FetchedImage, name: str, cut: bool) -> Tile:
    if image.pixels is None:
        return Tile(one, name, 4 / 3, "", image.why)
    boxes = [_box_to_draw(box, named=not cut) for box in one.boxes]
    pixels = draw_boxes(image.pixels, one.size, boxes, bold=cut)
    if cut:
        pixels = cut_around(pixels, one.size, boxes[0].corners)
    rows, columns = pixels.shape[:2]
    ratio = min(MOST_RATIO, max(LEAST_RATIO, columns / rows))
    return Tile(one, name, ratio, data_uri(pixels), "")


def _box_to_draw(box: dict[str, Any], named: bool) -> Box:
    corners = (box["x_min"], box["y_min"], box["x_max"], box["y_max"])
    colour = COLOURS[box["label_id"] % len(COLOURS)]
    return Box(corners, f"{box['label']} {box['score']:.2f}" if named else "", colour)
