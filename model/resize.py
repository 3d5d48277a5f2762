"""How large a picture becomes before the model sees it. Free of torch: CPU workers use it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ResizeRule:
    """Bring the shorter side to `shorter` pixels, unless the longer would pass `longest`."""

    shorter: int
    longest: int

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        return target_size(height, width, self.shorter, self.longest)


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
