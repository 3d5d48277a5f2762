"""`detr-batch export` and `import`: labels for other tools, and labels from them."""

from typing import Any

FORMATS = ("coco", "yolo", "labelstudio", "voc", "csv")


def add(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="the newest labels in the format of another tool",
        description="Write the newest labels of OUTPUT: coco, labelstudio and csv into one file, "
        "yolo and voc into a folder. FILE is a local path or a URL (s3://bucket/labels.json).",
    )
    option = export.add_argument
    option("output", metavar="OUTPUT")
    option("file", metavar="FILE", help="what to write")
    option("--to", required=True, choices=FORMATS)
    option("--min-score", type=float, default=0.0, help="leave out boxes below (default: 0)")
    option("--labels", default="", metavar="A,B", help="only boxes of these (default: all)")
    option("--overwrite", action="store_true", help="replace what lies at FILE")
    export.set_defaults(run=_export)
    bring = commands.add_parser(
        "import",
        help="detections of another model, in COCO's format, as tables",
        description="Take DETECTIONS, a JSON list of {image_id, category_id, bbox, score} as other "
        "detectors write it, into the tables of OUTPUT, for query, evaluate, compare and export.",
    )
    option = bring.add_argument
    option("detections", metavar="DETECTIONS", help="a .json file")
    option("output", metavar="OUTPUT", help="folder for the tables")
    option("--annotations", required=True, metavar="FILE", help="COCO file of images, categories")
    option("--model", help="its name in the tables (default: that of the file)")
    option(
        "--images", metavar="URL", help="where the pictures lie: images get the names of `label`"
    )
    bring.add_argument(
        "--single-writer",
        action="store_true",
        help="nothing else writes OUTPUT meanwhile: for stores that cannot keep two runs apart",
    )
    bring.set_defaults(run=_import)


def _export(output: str, file: str, to: str, min_score: float, labels: str, overwrite: bool) -> int:
    from jobs.exports.exports import export
    from jobs.exports.reader import Choice

    wanted = tuple(label.strip() for label in labels.split(",") if label.strip())
    export(output, file, to, Choice(min_score, wanted), overwrite)
    return 0


def _import(**options: Any) -> int:
    from jobs.imports.imports import ImportOptions, import_results

    import_results(ImportOptions(**options))
    return 0
