"""`detr-batch report` and `query`: print the report of a run, or query its tables with SQL."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.boxes.options import SuppressionOptions
from jobs.cli.options import add_command
from jobs.cli.printing import check_page, show, write_page
from pipeline.storage.errors import InputError

FORMATS = ("table", "csv", "tsv", "json", "jsonl", "parquet")


@dataclass(frozen=True)
class ReportOptions:
    output: str = field(metadata={"positional": True, "help": "folder of the tables"})
    run_id: str | None = field(
        default=None,
        metadata={
            "flag": "--run",
            "metavar": "RUN",
            "one_of": "which",
            "help": "not the newest, but this one",
        },
    )
    all: bool = field(
        default=False, metadata={"one_of": "which", "help": "a line a run, with trends and totals"}
    )
    json: bool = field(default=False, metadata={"help": "for programs"})
    html: str | None = field(
        default=None,
        metadata={
            "metavar": "FILE",
            "help": "write a page of its own, with images, to a path or URL",
        },
    )


@dataclass(frozen=True)
class QueryOptions(SuppressionOptions):
    output: str | None = field(
        default=None, metadata={"positional": True, "help": "folder of the tables"}
    )
    sql: str | None = field(
        default=None,
        metadata={"positional": True, "help": "a SELECT; @FILE has it in a file, - on stdin"},
    )
    format: str | None = field(
        default=None, metadata={"choices": FORMATS, "help": "on stdout (default: table)"}
    )
    out: str | None = field(
        default=None,
        metadata={
            "metavar": "FILE",
            "help": "into a file, a path or a URL; its suffix chooses the format: .csv, .tsv, "
            ".json, .jsonl (or .ndjson), .parquet; all but Parquet may end in .gz",
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "replace what lies at FILE"})
    present_only: bool = field(
        default=False,
        metadata={
            "help": "leave out objects that the last `label` over the same INPUT did not find"
        },
    )
    examples: bool = field(default=False, metadata={"help": "print worked examples"})


def add(commands: Any) -> None:
    add_command(
        commands,
        "report",
        ReportOptions,
        _report,
        help="throughput and cost of a run, or of all of them",
        description="What a finished run did, how fast, and at what cost.",
    )
    add_command(
        commands,
        "query",
        QueryOptions,
        _query,
        help="SQL over the views images, detections, latest_images and latest",
        description="DuckDB SQL over the tables of OUTPUT: `images` and `detections` are all rows "
        "of all finished runs, `latest_images` and `latest` (its boxes) those of each object's "
        "newest run that could fetch it.",
    )


def _report(options: ReportOptions) -> int:
    from jobs.report import report, reports

    if options.all and options.html is not None:
        raise InputError("--html shows one run: give --run RUN instead of --all")
    if options.html is not None:
        check_page(options.output, options.html)
        write_page(report.html(options.output, options.run_id), options.html)
        if not options.json:
            return 0
    if options.all:
        show(report.overview(options.output), report.overview_as_text, options.json)
    else:
        show(reports.report_of(options.output, options.run_id), report.as_text, options.json)
    return 0


def _query(options: QueryOptions) -> int:
    from jobs import query
    from jobs.boxes.choice import suppression_rules

    if options.examples:
        print(query.examples())
        return 0
    if options.output is None or options.sql is None:
        raise InputError("query needs OUTPUT and SQL; --examples prints some")
    form = None
    if options.out is not None:
        form = query.form_of(options.out, options.format)
    elif options.format not in (None, "table"):
        form = query.Form(options.format)
    query.query(
        options.output,
        _read_sql(options.sql),
        form,
        options.out,
        options.overwrite,
        options.present_only,
        suppression_rules(options),
    )
    return 0


def _read_sql(given: str) -> str:
    """The SQL itself, or what a file or stdin holds. InputError if that cannot be read."""
    if given == "-":
        return sys.stdin.read()
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"SQL {given}: the file cannot be read: {error}") from error
