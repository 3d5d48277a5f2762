"""`detr-batch report` and `query`: what a run did, and what its tables say."""

from pathlib import Path
from typing import Any

from jobs.cli.answers import show, write_page

FORMATS = ("table", "csv", "json", "parquet")


def add(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="throughput and cost of a run, or of all of them",
        description="What a finished run did, how fast, and at what cost.",
    )
    option = report.add_argument
    option("output", metavar="OUTPUT")
    which = report.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="RUN", dest="run_id", help="not the newest, but this one")
    which.add_argument("--all", action="store_true", help="a line a run, with trends and totals")
    option("--json", action="store_true", help="for programs")
    option("--html", type=Path, metavar="FILE", help="write a page of its own, with pictures")
    report.set_defaults(run=_report)
    query = commands.add_parser(
        "query",
        help="SQL over the views images, detections, latest_images and latest",
        description="DuckDB SQL over the tables of OUTPUT: `images` and `detections` are all rows "
        "of all finished runs, `latest_images` and `latest` (its boxes) the newest of each object.",
    )
    option = query.add_argument
    option("output", metavar="OUTPUT", nargs="?")
    option("sql", metavar="SQL", nargs="?", help="a SELECT")
    option("--format", choices=FORMATS, help="on stdout (default: table)")
    option("--out", type=Path, metavar="FILE", help="into a .csv, .json or .parquet file")
    option("--examples", action="store_true", help="print worked examples")
    query.set_defaults(run=_query)


def _report(output: str, run_id: str | None, all: bool, json: bool, html: Path | None) -> int:
    from jobs.report import report

    if all and html is not None:
        raise ValueError("--html shows one run: give --run RUN instead of --all")
    if html is not None:
        write_page(report.html(output, run_id), html)
        if not json:
            return 0
    if all:
        show(report.overview(output), report.overview_as_text, json)
    else:
        show(report.report_of(output, run_id), report.as_text, json)
    return 0


def _query(
    output: str | None, sql: str | None, format: str | None, out: Path | None, examples: bool
) -> int:
    from jobs import query

    if examples:
        print(query.examples())
        return 0
    if output is None or sql is None:
        raise ValueError("query needs OUTPUT and SQL; --examples prints some")
    if out is not None and format is None:
        format = query.form_of(out)
    query.query(output, sql, format or "table", out)
    return 0
