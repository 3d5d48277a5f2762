"""The size to which an image is resized for the model. CPU workers use it, so it needs no torch."""

from dataclasses import dataclass

STRIDE = 32  # of the coarsest level of the trunk
SHORTER_STEPS = 5  # lengths of the shorter side of a canvas
MOST_ENLARGED = 16  # times the pixels that a detector makes of an image, see `prepared_size`


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

    def most_pixels(self, displayed: int) -> int:
        """The most pixels of a resized image, of images with up to `displayed` of them."""
        # Rounding makes an image larger than `longest`: by up to a half where it is a pixel thin.
        return (2 * self.longest + self.multiple) ** 2

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels after resizing an image of this height and width."""
        sides = target_size(height, width, self.shorter, self.longest)
        height, width = (max(1, round(side / self.multiple)) * self.multiple for side in sides)
        return height, width

    def prepared_size(self, height: int, width: int, enlarge: bool) -> tuple[int, int]:
        """Height and width in which a preparer hands over an image of this height and width.

        That is the target, or without `enlarge` the image's own size where the detector is to
        enlarge it: both sides are at most those of the target. Images that become more than
        MOST_ENLARGED times as large are enlarged by preparers too: tables are bounded by their
        bytes, and would have too many images.
        """
        rows, columns = self.target_size(height, width)
        fits = height <= rows and width <= columns
        if enlarge or not fits or self.is_much_enlarged(height, width):
            return rows, columns
        return height, width

    def is_much_enlarged(self, height: int, width: int) -> bool:
        """Whether an image of this size becomes more than MOST_ENLARGED times as large."""
        rows, columns = self.target_size(height, width)
        return rows * columns > MOST_ENLARGED * height * width


@dataclass(frozen=True)
class AsDisplayed(ResizeRule):
    """No resizing: the detector gets an image as it is displayed, and resizes it itself."""

    shorter: int = 0
    longest: int = 0

    def most_pixels(self, displayed: int) -> int:
        return displayed

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


AS_DISPLAYED = AsDisplayed()


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


@dataclass(frozen=True)
class CanvasRule:
    """Round the sides of resized images up, so that few canvases occur and little is padded.

    The shorter side becomes a multiple of `shorter` pixels, and the longer side one of `longer`.
    """

    shorter: int
    longer: int

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the canvas for a resized image of this height and width."""
        shorter, longer = self.shorter, self.longer
        steps = (shorter, longer) if height <= width else (longer, shorter)
        height, width = (
            -(-side // step) * step for side, step in zip((height, width), steps, strict=True)
        )
        return height, width


def canvas_rule(rule: ResizeRule) -> CanvasRule:
    """The canvases for images that were resized by `rule`.

    Most images have the shorter side of the rule, which the canvas has too; only images of extreme
    proportions have a shorter one. At 800 x 1333 COCO's photos get 21 canvases, which have 1.02
    times their pixels.
    """
    return CanvasRule(-(-rule.shorter // (SHORTER_STEPS * STRIDE)) * STRIDE, 2 * STRIDE)
