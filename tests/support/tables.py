"""What the views of an OUTPUT hold."""

from contextlib import closing
from pathlib import Path
from typing import Any

from jobs.output.views import connect


def rows(output: str | Path, sql: str) -> list[tuple[Any, ...]]:
    """The answer to a question in SQL, as `query` gets it."""
    with closing(connect(str(output))) as connection:
        return connection.sql(sql).fetchall()
