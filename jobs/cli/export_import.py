"""`detr-batch export` and `import`: write labels for other tools, and read their labels."""

from dataclasses import dataclass, field, fields
from typing import Any

from jobs.boxes.options import OTHER_SCORES, BoxOptions
from jobs.cli.options import add_command
from jobs.cli.process import begin_startup
from jobs.imports.options import ImportOptions
from pipeline.storage.errors import InputError

FORMATS = ("coco", "yolo", "labelstudio", "voc", "csv")
# What other tools call these formats, in small letters and digits alone.
OTHER_NAMES = {
    **dict.fromkeys(("mscoco", "cocojson", "json", "cocodetection"), "coco"),
    **dict.fromkeys(
        ("ultralytics", "darknet", "yolotxt", *(f"yolov{n}" for n in range(3, 13)), "yolo11",
         "yolo12", "yolo26"),
        "yolo",
    ),
    **dict.fromkeys(("labelstudio", "labelstudiojson", "ls"), "labelstudio"),
    **dict.fromkeys(("voc2007", "voc2012", "pascal", "pascalvoc", "pascalvocxml", "xml"), "voc"),
    **dict.fromkeys(("csvsink", "supervision"), "csv"),
}  # fmt: skip


@dataclass(frozen=True)
class ExportOptions(BoxOptions):
    output: str = field(metadata={"positional": True, "help": "folder of the tables"})
    file: str = field(metadata={"positional": True, "help": "what to write"})
    to: str = field(metadata={"choices": FORMATS, "other_names": OTHER_NAMES, "help": "the format"})
    min_score: float = field(
        default=0.0, metadata={"help": "leave out boxes below", "other_flags": OTHER_SCORES}
    )
    labels: str | None = field(
        default=None, metadata={"metavar": "A,B", "help": "only boxes of these (default: all)"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace what lies at FILE"})
    with_images: bool = field(
        default=False,
        metadata={"help": "coco, yolo, voc: a folder with the images, whose bytes are unchanged"},
    )
    link_images: bool = field(
        default=False,
        metadata={
            "help": "the same with links to local files; what a tool writes to such an image, it "
            "writes to yours"
        },
    )
    flat: bool = field(
        default=False,
        metadata={"help": "names of images without folders, album__a.jpg: for supervision"},
    )
    image_prefix: str | None = field(
        default=None,
        metadata={
            "metavar": "URL",
            "help": "labelstudio: the address below which its server has the images of INPUT",
        },
    )
    present_only: bool = field(
        default=False,
        metadata={
            "help": "leave out objects that the last `label` over the same INPUT did not find"
        },
    )


def add(commands: Any) -> None:
    add_command(
        commands,
        "export",
        ExportOptions,
        _export,
        help="the newest labels in the format of another tool",
        description="Write the newest labels of OUTPUT: coco, labelstudio and csv into one file, "
        "yolo and voc, and coco with images, into a folder. FILE is a local path or a URL (s3://bucket/labels.json).",
    )
    add_command(
        commands,
        "import",
        ImportOptions,
        _import,
        help="detections of another model, in COCO's format, as tables",
        description="Take DETECTIONS, a JSON list of {image_id, category_id, bbox, score} as other "
        "detectors write it, into the tables of OUTPUT, for query, evaluate, compare and export.",
    )


def _export(options: ExportOptions) -> int:
    from jobs.exports.exports import ImageOptions, export
    from jobs.exports.reader import Choice

    given = options.labels
    labels = tuple(label.strip() for label in (given or "").split(",") if label.strip())
    if given is not None and not labels:
        raise InputError(f"--labels {given} names no label: give some with commas between")
    boxes = BoxOptions(**{one.name: getattr(options, one.name) for one in fields(BoxOptions)})
    choice = Choice(options.min_score, labels, boxes)
    images = ImageOptions(
        options.with_images, options.link_images, options.flat, options.image_prefix or ""
    )
    export(
        options.output,
        options.file,
        options.to,
        choice,
        options.overwrite,
        images,
        options.present_only,
    )
    return 0


def _import(options: ImportOptions) -> int:
    from jobs.imports.imports import import_results

    import_results(options, begin_startup())
    return 0
