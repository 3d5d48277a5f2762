"""`detr-batch evaluate` and `compare`: labels against the truth, and against other labels."""

from pathlib import Path
from typing import Any

from jobs.cli.answers import show, write_page


def add(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="COCO average precision of the labels against annotations",
        description="The twelve numbers of COCO, and AP of each class, of OUTPUT's newest labels "
        "against an annotation file in COCO's format. The model is not run again.",
    )
    option = evaluate.add_argument
    option("output", metavar="OUTPUT")
    option("annotations", metavar="ANNOTATIONS", help="instances.json, a path or a URL")
    option(
        "--only-labelled",
        action="store_true",
        help="leave annotated images out that failed or were not labelled; "
        "otherwise they count as images without detections",
    )
    option("--json", action="store_true", help="for programs")
    evaluate.set_defaults(run=_evaluate)
    compare = commands.add_parser(
        "compare",
        help="what changed between two OUTPUTs, or two runs of one",
        description="Boxes that are new, gone or of another class in OUTPUT_B since OUTPUT_A, and "
        "how scores and places of the others moved; by class. Of each image the newest labels are "
        "compared, or those of one run (give one OUTPUT twice to compare two of its runs).",
    )
    option = compare.add_argument
    option("output_a", metavar="OUTPUT_A")
    option("output_b", metavar="OUTPUT_B")
    option("--run-a", metavar="RUN", help="only the labels of this run of OUTPUT_A")
    option("--run-b", metavar="RUN", help="only those of this one of OUTPUT_B")
    option(
        "--iou",
        type=float,
        default=0.5,
        help="least overlap of two boxes that are one object (default: 0.5)",
    )
    option(
        "--by-name",
        action="store_true",
        help="images are the same where the last parts of their image_ids are, without suffix: "
        "for copies of one lake in two places",
    )
    option("--html", type=Path, metavar="FILE", help="a page with the images that differ most")
    option("--json", action="store_true", help="for programs")
    compare.set_defaults(run=_compare)


def _evaluate(output: str, annotations: str, only_labelled: bool, json: bool) -> int:
    from jobs.evaluate.evaluate import as_text, evaluate

    show(evaluate(output, annotations, only_labelled), as_text, json)
    return 0


def _compare(json: bool, html: Path | None, **options: Any) -> int:
    from jobs.compare.compare import Comparison, compare
    from jobs.compare.text import as_text

    result = compare(Comparison(**options, with_boxes=html is not None))
    if html is not None:
        from jobs.compare.page import page_of
        from jobs.report.pictures import PictureReader

        with PictureReader() as pictures:
            write_page(page_of(result, pictures), html)
    if json or html is None:
        show(result, as_text, json)
    return 0
