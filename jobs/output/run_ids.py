"""Run ids. They sort by the age of their runs."""

import re
import secrets
from datetime import UTC, datetime, timedelta

from jobs.output import paths
from pipeline.storage.files import join, list_files, open_location

RUN_TIME = "%Y%m%dT%H%M%SZ"  # format of the time with which a run id begins
RUN_NAME = re.compile(r"\d{8}T\d{6}Z-")


def new_run_id(output: str) -> str:
    """A run id that sorts behind all run ids of OUTPUT, even if another clock was ahead."""
    fs, path = open_location(join(output, paths.RUNS), "OUTPUT")
    folders = {name[len(path) :].strip("/").split("/")[0] for name in list_files(fs, path)}
    names = [name for name in folders if RUN_NAME.match(name)]
    now = datetime.now(UTC).replace(microsecond=0)
    if names:
        newest = datetime.strptime(max(names)[:16], RUN_TIME).replace(tzinfo=UTC)
        now = max(now, newest + timedelta(seconds=1))
    return f"{now:{RUN_TIME}}-{secrets.token_hex(3)}"
