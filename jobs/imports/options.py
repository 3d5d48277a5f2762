"""The options of `detr-batch import`."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.storage.urls import mask


@dataclass(frozen=True)
class ImportOptions:
    """The options of the command line."""

    detections: str = field(metadata={"positional": True, "help": "a .json file"})
    output: str = field(metadata={"positional": True, "help": "folder for the tables"})
    annotations: str = field(
        metadata={"metavar": "FILE", "help": "COCO file of images, categories"}
    )
    model: str | None = field(
        default=None, metadata={"help": "its name in the tables (default: that of the file)"}
    )
    images: str | None = field(
        default=None,
        metadata={
            "metavar": "URL",
            "help": "where the images lie: they get the names of `label`",
        },
    )
    single_writer: bool = field(
        default=False,
        metadata={
            "help": "nothing else writes OUTPUT meanwhile: for stores that cannot keep two runs "
            "apart"
        },
    )

    def model_name(self) -> str:
        return self.model or Path(mask(self.detections)).stem
