"""The options that say who is told of a run."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from jobs.label.notify.receiver import OF_VARIABLE, Receiver, is_web, shown, value_of
from jobs.label.notify.signature import VARIABLE, signing_key
from pipeline.storage.errors import InputError
from pipeline.storage.urls import holds_secret, identity, mask

JSON, SLACK = "json", "slack"
FILE = "file://"
SLACK_HOST = "hooks.slack.com"
LINEAGE_PATH = "/api/v1/lineage"  # where receivers of OpenLineage listen

LONGEST_EVENT = 1 << 20  # bytes of a line that may be an event


@dataclass(frozen=True, kw_only=True)
class NotifyOptions:
    """Who is told of a run. Neither option changes labels or exit codes."""

    notify: str | None = field(
        default=None,
        metadata={
            "metavar": "URL",
            "help": "send the result to this address when the command ends, well or not, signed "
            f"with ${VARIABLE}; env:NAME takes the address from a variable",
        },
    )
    notify_form: str = field(
        default=JSON,
        metadata={
            "choices": (JSON, SLACK),
            "help": "what --notify sends: the report as JSON, or a message for a webhook of Slack",
        },
    )
    lineage: str | None = field(
        default=None,
        metadata={
            "metavar": "FILE_OR_URL",
            "help": "write OpenLineage events of each run to a file, a folder of a bucket, or the "
            "address of a receiver; env:NAME takes it from a variable",
        },
    )

    def notify_receiver(self) -> Receiver | None:
        """The receiver of --notify; None without one. Raises InputError for a wrong one."""
        if self.notify is None:
            return None
        receiver = Receiver("--notify", value_of("--notify", self.notify))
        receiver.check()
        if self.notify_form == JSON and receiver.host == SLACK_HOST:
            raise InputError(f"--notify {SLACK_HOST} takes no JSON report: add --notify-form slack")
        return receiver

    def notify_key(self) -> bytes | None:
        """The key that signs. None for Slack, which knows a sender by the address alone."""
        return signing_key() if self.notify_form == JSON else None

    def lineage_place(self) -> str | None:
        """The file or URL of --lineage; None without one. Raises InputError for a wrong one."""
        if self.lineage is None:
            return None
        place = value_of("--lineage", self.lineage)
        if is_web(place):
            receiver = Receiver("--lineage", place)
            receiver.check()
            host_alone = place.partition("://")[2].rstrip("/").count("/") == 0
            return place.rstrip("/") + LINEAGE_PATH if host_alone and "?" not in place else place
        if "://" not in place or place.startswith(FILE):
            _check_file(Path(place.removeprefix(FILE)))
        return place

    def check_notify_for_job(self) -> None:
        """Raise InputError for what a job cannot have: all who see a job see its command line."""
        if self.notify is not None and not self.notify.startswith(OF_VARIABLE):
            raise InputError(
                f"--notify {shown(self.notify)}: the address of a webhook is a secret, which the "
                "cluster would show to all who see its jobs: set it as a variable in the image or "
                "pods of its nodes, which jobs inherit, and give --notify env:NAME"
            )
        place = self.lineage
        if place is None or place.startswith(OF_VARIABLE):
            return
        if holds_secret(place) or identity(place) != place:
            raise InputError(
                f"--lineage {shown(place)} carries a secret, which the cluster would show to all "
                "who see its jobs: set it as a variable of its nodes, and give --lineage env:NAME"
            )
        if "://" not in place and not Path(place).is_absolute():
            raise InputError(
                f"--lineage {place} is a path of this machine: give a bucket, an address, or an "
                "absolute path that all nodes of the cluster share"
            )

    def shown_receivers(self) -> dict[str, str | None]:
        """The options for run.json, without secrets."""
        lineage = self.lineage
        return {
            "notify": self.notify and shown(self.notify),
            "lineage": shown(lineage) if lineage and is_web(lineage) else lineage and mask(lineage),
        }


def _check_file(file: Path) -> None:
    """Raise InputError if events cannot be appended to a local file."""
    if file.is_dir():
        raise InputError(f"--lineage {file} is a folder: give a file")
    if not file.parent.is_dir():
        raise InputError(f"--lineage {file}: its folder does not exist; make it first")
    if file.is_file() and file.stat().st_size and not _begins_with_event(file):
        raise InputError(f"--lineage {file} is no file of events: name another, or a new one")


def _begins_with_event(file: Path) -> bool:
    """Whether the first line of a file is an event. One that may not be read may be one."""
    try:
        with file.open("rb") as opened:
            first = json.loads(opened.readline(LONGEST_EVENT))
    except PermissionError:
        return True
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "eventType" in first
