"""`detr-batch evaluate` and `compare`: compare labels with annotations, or with other labels."""

from dataclasses import dataclass, field, replace
from typing import Any

from jobs.boxes.options import SuppressionOptions
from jobs.cli.options import add_command
from jobs.cli.printing import check_page, show, write_page
from jobs.compare.options import Comparison
from pipeline.storage.errors import InputError


@dataclass(frozen=True)
class EvaluateOptions(SuppressionOptions):
    output: str = field(metadata={"positional": True, "help": "folder of the tables"})
    annotations: str = field(
        metadata={"positional": True, "help": "instances.json, a path or a URL"}
    )
    only_labelled: bool = field(
        default=False,
        metadata={
            "help": "leave annotated images out that failed or were not labelled; otherwise they "
            "count as images without detections"
        },
    )
    match: str = field(
        default="names",
        metadata={
            "choices": ("names", "numbers"),
            "help": "what says that a class of OUTPUT is one of the annotations",
        },
    )
    by_name: bool = field(
        default=False,
        metadata={
            "help": "match names that differ only in spaces, `_`, `-` and other signs: "
            "traffic_light for traffic light"
        },
    )
    json: bool = field(default=False, metadata={"help": "for programs"})


@dataclass(frozen=True)
class CompareOptions(Comparison):
    html: str | None = field(
        default=None,
        metadata={
            "metavar": "FILE",
            "help": "a page with the images that differ most, at a path or URL",
        },
    )
    json: bool = field(default=False, metadata={"help": "for programs"})


def add(commands: Any) -> None:
    add_command(
        commands,
        "evaluate",
        EvaluateOptions,
        _evaluate,
        help="COCO average precision of the labels against annotations",
        description="The twelve numbers of COCO, and AP of each class, of OUTPUT's newest labels "
        "against an annotation file in COCO's format. The model is not run again.",
    )
    add_command(
        commands,
        "compare",
        CompareOptions,
        _compare,
        help="what changed between two OUTPUTs, or two runs of one",
        description="Boxes that are new, gone or of another class in OUTPUT_B since OUTPUT_A, and "
        "how scores and places of the others moved; by class. Of each image the newest labels are "
        "compared, or those of one run (give one OUTPUT twice to compare two of its runs).",
    )


def _evaluate(options: EvaluateOptions) -> int:
    from jobs.boxes.choice import suppression_rules
    from jobs.evaluate.classes import ALIKE, NUMBERS
    from jobs.evaluate.evaluate import evaluate
    from jobs.evaluate.text import as_text

    if options.by_name and options.match == NUMBERS:
        raise InputError("--by-name and --match numbers contradict one another: give only one")
    match = ALIKE if options.by_name else options.match
    rules = suppression_rules(options)
    result = evaluate(options.output, options.annotations, options.only_labelled, match, rules)
    show(result, as_text, options.json)
    return 0


def _compare(options: CompareOptions) -> int:
    from jobs.compare.compare import compare
    from jobs.compare.text import as_text

    if options.html is not None:
        for output in (options.output_a, options.output_b):
            check_page(output, options.html)
    result = compare(replace(options, with_boxes=options.html is not None))
    if options.html is not None:
        from jobs.compare.page import page_of
        from jobs.report.pictures import PictureReader

        with PictureReader() as reader:
            write_page(page_of(result, reader), options.html)
    show(result, as_text, options.json)
    return 0
