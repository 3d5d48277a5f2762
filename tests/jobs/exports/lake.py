"""A lake with names that tools misunderstand, and an OUTPUT of it that is made by hand."""

import csv
from collections.abc import Sequence
from pathlib import Path

from pipeline.storage.files import object_info, open_location
from pipeline.storage.versions import etag_of
from tests.support.labelled import LABELS, Labelled, random_boxes, write_run
from tests.support.samples import jpeg, write_tar

LOOSE = ["a.jpg", "images/a.jpg", "album/images/b.JPG", "no-suffix", "c.jfif", "x" * 200 + ".jpg"]
MEMBERS = ["one", "deep/images/two", "three"]


def etag(url: str) -> str:
    return etag_of(object_info(*open_location(url, "INPUT")))


def write_lake(lake: str) -> dict[str, bytes]:
    """Write loose images and an archive; return the bytes of each image by its id."""
    fs, path = open_location(lake, "INPUT")
    written = {}
    for number, name in enumerate(LOOSE):
        fs.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{path}/{name}", jpeg(number))
        written[f"{lake}/{name}"] = jpeg(number)
    return written


def label_by_hand(output: Path | str, lake: str, *archives: tuple[str, Sequence[str]]) -> None:
    """Publish a run over loose images, and over archives with the keys of their images."""
    images = [
        Labelled(f"{lake}/{name}", random_boxes(1, 2), etag=etag(f"{lake}/{name}"))
        for name in LOOSE
    ]
    images += [
        Labelled(f"{url}#{key}", random_boxes(2, 3), "ok", url, url, etag(url))
        for url, keys in archives
        for key in keys
    ]
    write_run(output, images, LABELS, source=lake)


def write_labelled_lake(folder: Path) -> dict[str, bytes]:
    """Write `lake` and its OUTPUT `out` into a folder; return the bytes of the images by id."""
    lake = f"file://{folder}/lake"
    images = write_lake(lake)
    members = {f"{name}.jpg": jpeg(10 + number) for number, name in enumerate(MEMBERS)}
    tar = f"file://{write_tar(folder / 'lake/s.tar', members)}"
    label_by_hand(folder / "out", lake, (tar, MEMBERS))
    return images | {f"{tar}#{name}": members[f"{name}.jpg"] for name in MEMBERS}


def by_image_id(made: Path) -> dict[str, dict[str, str]]:
    with (made / "images.csv").open(newline="") as file:
        return {row["image_id"]: row for row in csv.DictReader(file)}
