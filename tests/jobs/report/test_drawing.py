"""Boxes on images: names cover neither small objects nor one another, and cuttings show a box."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from jobs.report.box_names import place_names
from jobs.report.captions import LONGEST, shorten_names
from jobs.report.drawing import Box, cut_around, data_uri, draw_boxes

NAME = (60.0, 12.0)  # width and height of a name


def test_boxes_are_drawn_in_their_place_and_texts_stay_within_the_image() -> None:
    pixels = np.zeros((200, 300, 3), np.uint8)
    box = Box((200.0, 100.0, 400.0, 300.0), "", "#ff0000")
    image = draw_boxes(pixels, (600, 400), [box])  # at half the size
    red = np.argwhere(image[..., 0] == 255)
    assert red.min(0).tolist() == [50, 100]
    assert red.max(0).tolist() == [150, 200]
    corner = Box((590.0, 0.0, 600.0, 5.0), "a long name 0.99", "#ff0000")
    written = draw_boxes(pixels, (600, 400), [corner])[..., 0] == 255
    assert written[:, 150:].sum() > 500  # the ground of the text, which stays within the image
    assert not pixels.any()


def test_a_data_uri_is_a_jpeg() -> None:
    kind, _, data = data_uri(np.full((20, 30, 3), 128, np.uint8)).partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (30, 20)


@pytest.mark.parametrize("text", ["日本", "a\nb", "x" * 300, "$\\frac{"])
def test_any_text_and_any_box_can_be_drawn(text: str) -> None:
    for corners in ((1, 1, 9, 9), (5, 5, 5, 5), (-9, -9, 90, 90), (40, 40, 50, 50)):
        draw_boxes(np.zeros((30, 30, 3), np.uint8), (30, 30), [Box(corners, text, "#ffffff")])


def test_names_cover_neither_small_objects_nor_one_another(seed: int) -> None:
    rng = np.random.default_rng(seed)
    named = 0
    for _ in range(40):
        corners = rng.uniform(0, (380, 280), (12, 2))
        sides = rng.choice([8.0, 20.0, 90.0], (12, 1)) * rng.uniform(0.7, 1.4, (12, 2))
        ends = np.minimum(corners + sides, (400, 300))
        boxes = [
            (float(a), float(b), float(c), float(d))
            for (a, b), (c, d) in zip(corners, ends, strict=True)
        ]
        places = [one for one in place_names(boxes, [NAME] * 12, (400, 300)) if one is not None]
        named += len(places)
        small = [box for box in boxes if (box[2] - box[0]) * (box[3] - box[1]) < 32 * 32]
        painted = np.zeros((301, 401), np.uint8)
        for left, top, right, low in places:
            assert 0 <= left < right <= 400 and 0 <= top < low <= 300
            assert (round(right - left), round(low - top)) == NAME
            for other in small:
                assert min(right, other[2]) <= max(left, other[0]) or (
                    min(low, other[3]) <= max(top, other[1])
                )
            # The inner pixels of each name belong to no other.
            inner = np.s_[int(top) + 1 : int(low), int(left) + 1 : int(right)]
            assert not painted[inner].any()
            painted[inner] = 1
    assert named > 40 * 12 / 2


def test_a_name_stands_above_its_box_and_within_a_box_that_fills_the_image() -> None:
    assert place_names([(50, 50, 150, 150)], [NAME], (400, 300)) == [(50, 38, 110, 50)]
    (inside,) = place_names([(0, 0, 400, 300)], [NAME], (400, 300))
    assert inside == (0, 0, 60, 12)
    assert place_names([(0, 0, 10, 10)], [(500.0, 12.0)], (400, 300)) == [None]
    assert place_names([(0, 0, 10, 10)], [None], (400, 300)) == [None]


@pytest.mark.parametrize("corners", [(0, 0, 9, 9), (390, 290, 400, 300), (10, 10, 390, 290)])
def test_a_cutting_holds_its_box_whole(corners: tuple[float, float, float, float]) -> None:
    pixels = np.zeros((150, 200, 3), np.uint8)  # half of the size
    left, top, right, low = (int(corner / 2) for corner in corners)
    pixels[top:low, left:right] = 255
    cut = cut_around(pixels, (400, 300), corners)
    assert (cut == 255).sum() == (pixels == 255).sum()
    assert cut.shape[0] >= 0.6 * 150
    assert cut.shape[1] / cut.shape[0] == pytest.approx(4 / 3, rel=0.02)


def test_captions_are_the_shortest_ends_that_tell_images_apart() -> None:
    names = ["file:///l/a/x/1.jpg", "file:///l/b/x/1.jpg", "file:///l/b/x/2.jpg", "s3://l/t.tar#k"]
    assert list(shorten_names(names).values()) != names
    found = shorten_names(names)
    assert [found[name] for name in names] == ["a/x/1.jpg", "b/x/1.jpg", "2.jpg", "t.tar#k"]
    assert shorten_names(["1.jpg", "a/1.jpg"]) == {"1.jpg": "1.jpg", "a/1.jpg": "a/1.jpg"}
    assert shorten_names([r"C:\a\1.jpg", r"C:\b\1.jpg"]) == {
        r"C:\a\1.jpg": "a/1.jpg", r"C:\b\1.jpg": "b/1.jpg",
    }  # fmt: skip
    assert shorten_names(["file:///a/1.jpg"] * 2) == {"file:///a/1.jpg": "1.jpg"}
    (long,) = shorten_names(["a/" + "x" * 300 + ".jpg"]).values()
    assert len(long) <= LONGEST and long.endswith(".jpg")
    assert shorten_names([""]) == {"": ""}


def test_captions_are_paths_below_input() -> None:
    names = ["file:///l/images/a.jpg", "file:///l/top.jpg", "file:///l/t.tar#k/1.jpg", "images/b"]
    found = shorten_names(names, ["file:///l"])
    assert list(map(found.get, names)) == ["images/a.jpg", "top.jpg", "t.tar#k/1.jpg", "images/b"]
    tar = "s3://b/deep/t.tar"
    assert shorten_names([f"{tar}#k/1.jpg"], [tar]) == {f"{tar}#k/1.jpg": "t.tar#k/1.jpg"}
    assert shorten_names(["s3://b/ab/1.jpg"], ["s3://b/a"]) == {"s3://b/ab/1.jpg": "1.jpg"}
    assert shorten_names(["s3://b/a/c/1.jpg"], ["s3://b", "s3://b/a/"]) == {
        "s3://b/a/c/1.jpg": "c/1.jpg"
    }


def test_long_captions_keep_the_first_folder_and_the_name() -> None:
    name = f"images/{'deep/' * 30}photo-0001.jpg"
    (short,) = shorten_names([name]).values()
    assert len(short) == LONGEST
    assert short.startswith("images/deep/") and short.endswith("deep/photo-0001.jpg")
    assert short.count("\N{HORIZONTAL ELLIPSIS}") == 1
    (last,) = shorten_names([f"{'f' * 40}/{'x' * 30}.jpg"]).values()
    assert len(last) == LONGEST and last.endswith(f"/{'x' * 30}.jpg")
    middle = [f"a/{'b' * 40}{digit}{'c' * 40}.jpg" for digit in "12"]
    assert shorten_names(middle) == {one: one for one in middle}
