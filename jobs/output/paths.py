"""Names of all files of an OUTPUT, relative to OUTPUT. No other file of the code spells them."""

import re

LOG = "_runs/log"
RUNS, STAGING = "_runs", "_staging"
CANARIES = "_runs/canaries"
TABLES = ("images", "detections")
LOCK = "_runs/lock.json"
# The lock of versions before 0.2. It stays for ever, so that these versions write no more.
OLD_LOCK = "_lock.json"

# A run id is no name that something else has below _runs.
_ID = r"(?!(?:log|canaries|lock\.json)(?![0-9A-Za-z_.\-]))[0-9A-Za-z][0-9A-Za-z_.\-]*"
_RUN_ID = re.compile(_ID)
_TOKEN = re.compile(r"[0-9a-f]{32}")
_ENTRY = re.compile(rf"{LOG}/(\d{{20}})\.json")
_CHECKPOINT = re.compile(rf"{LOG}/checkpoint-(\d{{20}})\.json")
# Versions before 0.2 wrote parts without a token in their names.
_PART = re.compile(
    rf"(?:images|detections)/run=({_ID})/part-\d{{5,}}(?:-([0-9a-f]{{32}}))?\.parquet"
)
_CANARIES = re.compile(rf"{CANARIES}/([0-9a-z]+)/({_ID})\.json")
_MANIFEST = re.compile(rf"{RUNS}/({_ID})/manifest(?:-([0-9a-f]{{32}}))?\.json")


def is_run_id(text: object) -> bool:
    """Whether the text is a run id. A run id cannot lead out of its folder, nor to the log."""
    return isinstance(text, str) and _RUN_ID.fullmatch(text) is not None


def is_token(text: object) -> bool:
    return isinstance(text, str) and _TOKEN.fullmatch(text) is not None


def entry(number: int) -> str:
    return f"{LOG}/{number:020}.json"


def number_of_entry(name: str) -> int | None:
    """The number of a log entry. None if the name is not that of a log entry."""
    found = _ENTRY.fullmatch(name)
    return int(found[1]) if found else None


def checkpoint(number: int) -> str:
    return f"{LOG}/checkpoint-{number:020}.json"


def number_of_checkpoint(name: str) -> int | None:
    """The number of the last log entry in a checkpoint. None if the name is not a checkpoint's."""
    found = _CHECKPOINT.fullmatch(name)
    return int(found[1]) if found else None


def canaries(fingerprint: str, run_id: str) -> str:
    """What a run recorded of the canaries of a model."""
    return f"{CANARIES}/{fingerprint}/{run_id}.json"


def model_and_run_of_canaries(name: str) -> tuple[str, str] | None:
    """Fingerprint and run id in the name of a record of canaries. None for other names."""
    found = _CANARIES.fullmatch(name)
    return (found[1], found[2]) if found else None


def run_folder(run_id: str) -> str:
    return f"{RUNS}/{run_id}"


def document(run_id: str, name: str) -> str:
    """A document of a run, such as run.json."""
    return f"{RUNS}/{run_id}/{name}"


def manifest(run_id: str, token: str) -> str:
    return f"{RUNS}/{run_id}/manifest-{token}.json"


def run_and_token_of_manifest(name: str) -> tuple[str, str | None] | None:
    """Run id and token in the name of a manifest. None for other names. Old names have no token."""
    found = _MANIFEST.fullmatch(name)
    return (found[1], found[2]) if found else None


def plan(run_id: str, token: str) -> str:
    """The plan of a committed run."""
    return f"{RUNS}/{run_id}/plan-{token}.parquet"


def is_plan(name: object, run_id: str) -> bool:
    """Whether the name is that of a plan of the run."""
    pattern = rf"{RUNS}/{re.escape(run_id)}/plan(?:-[0-9a-f]{{32}})?\.parquet"
    return isinstance(name, str) and re.fullmatch(pattern, name) is not None


def part_template(run_id: str, token: str) -> str:
    """The name of a part, as a template with the fields `table` and `number`."""
    return f"{{table}}/run={run_id}/part-{{number:05d}}-{token}.parquet"


def table_of_part(name: str) -> str:
    """The table that a part belongs to."""
    return name.partition("/")[0]


def run_and_token_of_part(name: str) -> tuple[str, str | None] | None:
    """Run id and token in the name of a part. None for other names. Old names have no token."""
    found = _PART.fullmatch(name)
    return (found[1], found[2]) if found else None


def staging(run_id: str) -> str:
    return f"{STAGING}/{run_id}"


def plan_under_way(run_id: str) -> str:
    """The plan of an unfinished run, in its staging folder."""
    return f"{STAGING}/{run_id}/plan.parquet"


def run_of_plan_under_way(name: str) -> str | None:
    """The run id in the name of a staged plan. None for other names."""
    parts = name.split("/")
    return parts[1] if len(parts) == 3 and name == plan_under_way(parts[1]) else None


def trial(token: str) -> str:
    """An object that a node writes and deletes to see whether it can; no reader looks there."""
    return f"{STAGING}/.probe-{token}"


def blocks(run_id: str) -> str:
    """The folder of a run's staged blocks."""
    return f"{STAGING}/{run_id}/blocks"


class OtherOutputs:
    """Finds the files of OUTPUTs among paths that come in the order of names.

    In this order the documents of an OUTPUT come before its tables.
    """

    _DOCUMENT = re.compile(
        rf"(.*/|){RUNS}/(?:lock\.json$|log/|canaries/|\d{{8}}T\d{{6}}Z)", re.DOTALL
    )

    def __init__(self) -> None:
        self._folder: str | None = None  # of the OUTPUT that was met last

    def __call__(self, path: str) -> bool:
        """Whether the path is that of a document or of a table of an OUTPUT."""
        if found := self._DOCUMENT.match(path):
            self._folder = found[1]
        if self._folder is None or not path.startswith(self._folder):
            return False
        name = path[len(self._folder) :]
        return name.startswith(f"{RUNS}/") or _PART.fullmatch(name) is not None
