"""The sizes of real photos, for loads that look like a lake of them."""

import csv
from pathlib import Path

import numpy as np

Size = tuple[int, int]
"""Height and width, in pixels."""

TABLE = Path(__file__).with_name("coco_sizes.csv")


def coco_sizes() -> dict[Size, int]:
    """How many images of COCO's val2017 have each size, the commonest size first.

    The table covers all of the split: 5,000 images in 603 sizes, and no row is missing. It was
    counted from a public list of the width and height of each image, `val2017.shapes`, of which
    two copies in different orders gave the same counts.
    """
    with TABLE.open(newline="") as table:
        return {
            (int(row["height"]), int(row["width"])): int(row["images"])
            for row in csv.DictReader(table)
        }


def draw_sizes(count: int, seed: int = 0) -> list[Size]:
    """Draw `count` sizes in random order, each with the probability of its frequency."""
    sizes = coco_sizes()
    images = np.array(list(sizes.values()))
    drawn = np.random.default_rng(seed).choice(len(images), count, p=images / images.sum())
    known = list(sizes)
    return [known[index] for index in drawn]
