"""How large a picture becomes before the model sees it. Free of torch: CPU workers use it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ResizeRule:
    """Bring the shorter side to `shorter` pixels, unless the longer would pass `longest`.

    Then round both sides to a `multiple`. Where a side is no multiple of a level's stride, the
    level's last cell hangs over the picture, and boxes are drawn towards the top left, the more the
    smaller the picture: shapes-tiny went from AP 0.69 to 0.80 by multiples alone.
    """

    shorter: int
    longest: int
    multiple: int = 1

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing."""
        sides = target_size(height, width, self.shorter, self.longest)
        height, width = (max(1, round(side / self.multiple)) * self.multiple for side in sides)
        return height, width


def target_size(height: int, width: int, shorter: int, longest: int) -> tuple[int, int]:
    """Height and width after resizing, as the original implementation rounds them.

    Source: `get_size_with_aspect_ratio` of Deformable DETR's transforms. Pictures so thin that
    their shorter side would become 0 become 1 x `longest`, out of proportion.
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
