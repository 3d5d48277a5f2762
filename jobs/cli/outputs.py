"""`detr-batch report` and `query`: what a run did, and what its tables say."""

import json as json_format
from pathlib import Path
from typing import Any

from model.urls import printable

FORMATS = ("table", "csv", "json", "parquet")


def add(commands: Any) -> None:
    report = commands.add_parser("report", help="throughput and cost of the newest run")
    report.add_argument("output", metavar="OUTPUT")
    report.add_argument("--json", action="store_true", help="for programs")
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


def _report(output: str, json: bool) -> int:
    from jobs.report import as_text, last_report

    report = last_report(output)
    print(json_format.dumps(report, indent=1) if json else printable(as_text(report)))
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
