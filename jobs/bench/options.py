"""The options of `detr-batch bench`, by subject."""

from dataclasses import dataclass, field
from pathlib import Path

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "mixed", "int8")
ONE, MIX = "one", "mix"  # loads: images of one size, and of COCO's sizes
SIZE = "800x1066"
_RESULTS = {"help": "CSV file to add to (default: the project's)"}


@dataclass(frozen=True)
class DeviceOptions:
    """Options of all subjects that time one device."""

    precision: str = field(
        default="auto", metadata={"choices": PRECISIONS, "help": "of the arithmetic"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    seconds: float = field(default=60.0, metadata={"help": "to time each case for"})


@dataclass(frozen=True)
class BenchOptions(DeviceOptions):
    """Options of `bench op`, and the base of options of other subjects."""

    results: Path | None = field(default=None, metadata=_RESULTS)
    json: bool = field(default=False, metadata={"help": "for programs"})


@dataclass(frozen=True)
class ModelBenchOptions(BenchOptions):
    """Options of `bench model`."""

    model: str = field(
        default="deformable-detr", metadata={"help": "one, several with commas between, or 'all'"}
    )
    sizes: str = field(
        default=ONE,
        metadata={"choices": (ONE, MIX), "help": "of the images; mix: those of COCO's photos"},
    )
    size: str | None = field(
        default=None, metadata={"help": f"rows x columns of the one size (default: {SIZE})"}
    )
    batch_size: str | None = field(
        default=None,
        metadata={
            "help": "images; several with commas between (default: 1; of a mix as in `label`)"
        },
    )
    images: int | None = field(
        default=None, metadata={"help": "of a mix (default: 24 on a CPU, 1600 on a GPU)"}
    )


@dataclass(frozen=True)
class PipelineBenchOptions(BenchOptions):
    """Options of `bench pipeline`."""

    model: str = field(
        default="deformable-detr", metadata={"help": "a published one; with a mix, any"}
    )
    images: int = field(default=24, metadata={"help": "files"})
    photos: str = field(
        default=ONE,
        metadata={
            "choices": (ONE, MIX),
            "help": "their sizes: one, beside a plain script; or a mix of COCO's, `label` alone",
        },
    )


@dataclass(frozen=True)
class TableOptions(BenchOptions):
    """Options of `bench table`."""

    model: str = field(
        default="deformable-detr-single-scale,detr-dc5,faster-rcnn",
        metadata={"help": "several names of `detr-batch models` with commas between"},
    )
    usd_per_hour: float | None = field(
        default=None, metadata={"help": "price of this machine, for USD per 1,000 images"}
    )
    weights: str | None = field(
        default=None, metadata={"help": "of the one --model, to measure its AP"}
    )
    images: Path | None = field(
        default=None, metadata={"metavar": "DIR", "help": "images to measure AP on"}
    )
    annotations: Path | None = field(
        default=None, metadata={"metavar": "FILE", "help": "of these images, in COCO's format"}
    )


@dataclass(frozen=True)
class LaunchesOptions(DeviceOptions):
    """Options of `bench launches`."""

    table: Path | None = field(
        default=None, metadata={"help": "JSON file to fill (default: the project's)"}
    )


@dataclass(frozen=True)
class ServeBenchOptions(DeviceOptions):
    """Options of `bench serve`."""

    clients: str = field(default="1,8,64", metadata={"help": "at a time, with commas between"})
    images: int = field(default=1, metadata={"help": "of each request"})
    queue: int = field(
        default=256, metadata={"help": "images that the endpoint holds; what is more is refused"}
    )
    model: str = field(default="shapes-tiny", metadata={"help": "a name of `detr-batch models`"})
    weights: str | None = field(default=None, metadata={"help": "as in `serve`, such as 'random'"})
    device_seconds: float | None = field(
        default=None,
        metadata={"help": "simulate devices that take so long for an image, and no CPU"},
    )
    device: str = field(
        default="cpu", metadata={"choices": ("cpu", "cuda"), "help": "of the detectors"}
    )
    seconds: float = field(default=5.0, metadata={"help": "of each turn, three a number"})
    results: Path | None = field(default=None, metadata=_RESULTS)
    json: bool = field(default=False, metadata={"help": "for programs"})


@dataclass(frozen=True)
class ScaleOptions:
    """Options of `bench scale`."""

    detectors: str = field(default="1,2,4,8", metadata={"help": "with commas between"})
    device_seconds: float = field(default=0.25, metadata={"help": "that each takes an image"})
    seconds: float = field(default=30.0, metadata={"help": "of each run, three a number"})
    results: Path | None = field(default=None, metadata=_RESULTS)
    json: bool = field(default=False, metadata={"help": "for programs"})


@dataclass(frozen=True)
class PlotOptions:
    """Options of `bench plot`."""

    picture: Path = field(
        metadata={"positional": True, "metavar": "FILE", "help": ".svg, .png or .pdf"}
    )
    results: Path | None = field(
        default=None, metadata={"help": "CSV file to read (default: the project's)"}
    )
