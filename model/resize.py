"""The size to which an image is resized for the model. CPU workers use it, so it needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ResizeRule:
    """Resize the shorter side to `shorter` pixels, unless the longer side would exceed `longest`.

    Then both sides are rounded to a `multiple`. If a side is not a multiple of a level's stride,
    the level's last cell extends beyond the image, and boxes are shifted towards the top left. The
    shift is larger for smaller images: shapes-tiny went from AP 0.69 to 0.80 by multiples alone.
    """

    shorter: int
    longest: int
    multiple: int = 1

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels after resizing an image of this height and width."""
        sides = target_size(height, width, self.shorter, self.longest)
        height, width = (max(1, round(side / self.multiple)) * self.multiple for side in sides)
        return height, width


def target_size(height: int, width: int, shorter: int, longest: int) -> tuple[int, int]:
    """Height and width in pixels after resizing, rounded as in the original implementation.

    Source: `get_size_with_aspect_ratio` of Deformable DETR's transforms. An image that is so thin
    that its shorter side would become 0 becomes 1 x `longest`, and its proportions change.
    """
    short, long = min(height, width), max(height, width)
    if long / short * shorter > longest:
        shorter = round(longest * short / long)
        if shorter == 0:
            return (longest, 1) if width < height else (1, longest)
    if short == shorter:
        return height, width
    if width < height:
        return max(1, int(shorter * height / width)), shorter
    return shorter, max(1, int(shorter * width / height))
