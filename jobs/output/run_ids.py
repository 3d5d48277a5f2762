"""Run ids. They sort by the age of their runs."""

import re
import secrets
import time
from datetime import UTC, datetime, timedelta

from jobs.output import paths
from pipeline.storage.errors import InputError
from pipeline.storage.files import join, list_files, open_location
from pipeline.storage.urls import mask

RUN_TIME = "%Y%m%dT%H%M%SZ"  # format of the time with which a run id begins
RUN_NAME = re.compile(r"\d{8}T\d{6}Z-")
# No command runs before the first time or after the last one, in Unix time: 2024 and 2200.
FIRST_TIME, LAST_TIME = (datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (2024, 2200))


def refuse_unset_clock() -> None:
    """Raise InputError if the clock of this machine is obviously wrong.

    Times are part of run ids and tables, and replaced files are kept until a time.
    """
    now = time.time()
    if not FIRST_TIME <= now < LAST_TIME:
        shown = time.strftime("%Y-%m-%d", time.gmtime(now))
        raise InputError(f"the clock of this machine says {shown}: set it, then run this again")


def new_run_id(output: str) -> str:
    """A run id that sorts behind all run ids of OUTPUT, even if another clock was ahead.

    Raises InputError if no time is later than that of the last run, or as `refuse_unset_clock`.
    """
    refuse_unset_clock()
    fs, path = open_location(join(output, paths.RUNS), "OUTPUT")
    folders = {name[len(path) :].strip("/").split("/")[0] for name in list_files(fs, path)}
    newest = max(filter(RUN_NAME.match, folders), default="")
    now = datetime.now(UTC).replace(microsecond=0)
    if newest[:16] >= f"{now:{RUN_TIME}}":
        now = _next_second(output, newest)
    return f"{now:{RUN_TIME}}-{secrets.token_hex(3)}"


def _next_second(output: str, run_id: str) -> datetime:
    try:
        return datetime.strptime(run_id[:16], RUN_TIME).replace(tzinfo=UTC) + timedelta(seconds=1)
    except (ValueError, OverflowError) as error:  # the folder is not of a run, or of year 9999
        folder = join(mask(output), paths.run_folder(run_id))
        raise InputError(
            f"no run id sorts behind {run_id}: remove that run with `detr-batch runs --delete`, "
            f"or, if `detr-batch runs` does not list it, delete the folder {folder}"
        ) from error
