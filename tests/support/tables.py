"""Queries over the views of an OUTPUT."""

from contextlib import closing
from pathlib import Path
from typing import Any

from jobs.output.views import connect


def rows(output: str | Path, sql: str) -> list[tuple[Any, ...]]:
    """Run a query in SQL as the command `query` does; return its rows."""
    with closing(connect(str(output))) as connection:
        return connection.sql(sql).fetchall()
