"""Places for the names of boxes, where they cover neither small objects nor one another."""

from collections.abc import Iterator, Sequence

Rectangle = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max

SMALL = 3.0  # an object of less than so many times the area of a name is never covered by it
MOST_COVERED = 0.15  # greatest share of a large object that one name may cover


def place_names(
    boxes: Sequence[Rectangle],
    sizes: Sequence[tuple[float, float] | None],
    bounds: tuple[float, float],
) -> list[Rectangle | None]:
    """Find a place for the name of each box within an image of `bounds` (width, height).

    `sizes` are the width and height of each name; None is a box without a name. Earlier boxes
    choose first. A name touches its box. It stands where it covers least, and outside of its box
    where it can. The place is None where there is no room.
    """
    placed: list[Rectangle] = []
    places: list[Rectangle | None] = []
    for box, size in zip(boxes, sizes, strict=True):
        found = None if size is None else _best_place(box, size, bounds, boxes, placed)
        places.append(found)
        placed += [found] if found else []
    return places


def _best_place(
    box: Rectangle,
    size: tuple[float, float],
    bounds: tuple[float, float],
    boxes: Sequence[Rectangle],
    placed: Sequence[Rectangle],
) -> Rectangle | None:
    best, least = None, float("inf")
    for place in _places_beside(box, size, bounds):
        if any(_common_area(place, other) > 0 for other in placed):
            continue
        covered = _covered_share(place, boxes)
        if covered is not None and covered < least:
            best, least = place, covered
    return best


def _places_beside(
    box: Rectangle, size: tuple[float, float], bounds: tuple[float, float]
) -> Iterator[Rectangle]:
    """Yield places for a name within the image, the usual ones first: above, below, beside, in."""
    left, top, right, low = box
    width, height = size
    rightmost, lowest = bounds[0] - width, bounds[1] - height
    corners = [
        *((x, y) for y in (top - height, low) for x in (left, right - width)),
        *((x, y) for x in (right, left - width) for y in (top, low - height)),
        *((x, y) for y in (top, low - height) for x in (left, right - width)),
    ]
    for number, (x, y) in enumerate(corners):
        if number < 4:  # above and below a box, a name may be shifted along its side
            x = min(max(x, 0.0), rightmost)
        elif number < 8:
            y = min(max(y, 0.0), lowest)
        if 0 <= x <= rightmost and 0 <= y <= lowest:
            yield x, y, x + width, y + height


def _covered_share(place: Rectangle, boxes: Sequence[Rectangle]) -> float | None:
    """Return the sum of the shares of boxes that a name covers; None if it covers too much."""
    area = (place[2] - place[0]) * (place[3] - place[1])
    total = 0.0
    for box in boxes:
        common = _common_area(place, box)
        if common <= 0:
            continue
        size = (box[2] - box[0]) * (box[3] - box[1])
        if size < SMALL * area or common > MOST_COVERED * size:
            return None
        total += common / size
    return total


def _common_area(a: Rectangle, b: Rectangle) -> float:
    """Return the area that two rectangles have in common; 0 if they only touch."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0
