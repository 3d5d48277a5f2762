"""The options of `detr-batch compare`."""

from dataclasses import dataclass, field

from pipeline.storage.errors import InputError


@dataclass(frozen=True)
class Comparison:
    """What to compare, and how."""

    output_a: str = field(metadata={"positional": True, "help": "folder of the tables before"})
    output_b: str = field(metadata={"positional": True, "help": "folder of the tables after"})
    run_a: str | None = field(  # None: the newest labels of each object
        default=None,
        metadata={"metavar": "RUN", "help": "only the labels of this run of OUTPUT_A"},
    )
    run_b: str | None = field(
        default=None, metadata={"metavar": "RUN", "help": "only those of this one of OUTPUT_B"}
    )
    iou: float = field(
        default=0.5, metadata={"help": "least overlap of two boxes that are one object"}
    )
    by_name: bool = field(
        default=False,
        metadata={
            "help": "images are the same where the last parts of their image_ids are, without "
            "suffix: for copies of one lake in two places"
        },
    )
    most: int = 20  # number of most different images that are returned
    with_boxes: bool = False  # whether these images come with their boxes and places, for the page

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1:
            raise InputError(f"--iou {self.iou:g}: give a number above 0, and 1 at most")

    def place(self, side: str) -> tuple[str, str | None]:
        """Return OUTPUT and the run of side "a" or "b"."""
        return (self.output_a, self.run_a) if side == "a" else (self.output_b, self.run_b)
