"""The options of `detr-batch label` for large images, and the check of their values."""

from dataclasses import dataclass, field

from model.resize import MOST_ENLARGED, ResizeRule
from pipeline.stages.tiling import DEFAULT_OVERLAP, MOST_OVERLAP, Tiling, smallest_tile
from pipeline.storage.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """Whether and how images are tiled."""

    tile: int | None = field(
        default=None,
        metadata={
            "metavar": "PIXELS",
            "help": "label images that are larger in tiles of this side, and as a whole; such "
            "images may have 1,000 megapixels (default: no tiles)",
        },
    )
    tile_overlap: float | None = field(
        default=None,
        metadata={
            "metavar": "SHARE",
            "help": "share of a tile's side that its neighbour shows too "
            f"(default: {DEFAULT_OVERLAP:g})",
        },
    )

    def check_tiles(self) -> None:
        """Raise InputError for values that are wrong for every model."""
        if self.tile is None and self.tile_overlap is not None:
            raise InputError("--tile-overlap is that of tiles: give --tile too, or leave it out")
        if self.tile_overlap is not None and not 0 <= self.tile_overlap <= MOST_OVERLAP:
            raise InputError(f"--tile-overlap {self.tile_overlap:g}: give 0 to {MOST_OVERLAP:g}")

    def tiling(self, resize: ResizeRule) -> Tiling | None:
        """How images are tiled for a model that is given them by `resize`; None: not at all.

        Raises InputError for tiles that are too small for it.
        """
        if self.tile is None:
            return None
        least = smallest_tile(resize)
        if self.tile < least:
            raise InputError(
                f"--tile {self.tile}: give at least {least}, as this model would see smaller tiles "
                f"enlarged more than {MOST_ENLARGED} times"
            )
        overlap = DEFAULT_OVERLAP if self.tile_overlap is None else self.tile_overlap
        return Tiling(self.tile, overlap)
