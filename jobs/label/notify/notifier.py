"""Tells receivers of a `label` command: lineage of each run, and a message at the end."""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from jobs.label.log.lines import print_line
from jobs.label.notify.announced_run import AnnouncedCommand, AnnouncedRun, Ending
from jobs.label.notify.lineage import run_event
from jobs.label.notify.messages import report_message, slack_message
from jobs.label.notify.options import FILE, SLACK, NotifyOptions
from jobs.label.notify.outbox import Outbox
from jobs.label.notify.post import NotDelivered, post
from jobs.label.notify.receiver import Receiver, is_web
from jobs.label.notify.signature import signed_headers
from pipeline.storage.explained_errors import describe_error
from pipeline.storage.files import canonical_url, create_whole, join, open_location
from pipeline.storage.protocols import is_local
from pipeline.storage.urls import mask, printable

# Seconds for which the end of a command waits for its receivers. One that is told to end has few:
# Ray kills a job three seconds later, and Kubernetes a pod after thirty.
PATIENCE, PATIENCE_OF_INTERRUPTED = 30.0, 2.5
LONGEST_ERROR = 1000  # characters of an error in a message
API_KEY = "OPENLINEAGE_API_KEY"  # the variable that clients of OpenLineage read
Deliver = Callable[[dict[str, Any]], None]


class Notifier:
    """Whom one command tells, and what it has to tell. Errors here never end a run."""

    def __init__(self, options: NotifyOptions | None, source: str, output: str, page: bool = False):
        """Raises InputError for a receiver that cannot be told. None as `options` tells nobody."""
        self._input, self._output, self._page = source, output, page
        self._runs: list[AnnouncedRun] = []
        self._messages = self._events = None
        if options is None:
            return
        receiver, place = options.notify_receiver(), options.lineage_place()
        self._form = slack_message if options.notify_form == SLACK else report_message
        if receiver is not None:
            deliver = partial(_post_signed, receiver, options.notify_key())
            self._messages = Outbox(str(receiver), deliver)
        if place is not None:
            self._events = Outbox(*_lineage(place, output))

    @property
    def has_receivers(self) -> bool:
        return self._messages is not None or self._events is not None

    @contextmanager
    def run(self, run: AnnouncedRun) -> Iterator[AnnouncedRun]:
        """Tell the begin of a run, and its end when the block ends. The block publishes `run`."""
        self._runs.append(run)
        self._put_event(run)
        try:
            yield run
        except BaseException as error:
            interrupted = not isinstance(error, Exception)
            reason = "interrupted" if interrupted else one_line(str(error))
            with _harmless("the end of the run is not told"):
                run.fail(reason, interrupted)
            self._put_event(run)
            raise
        self._put_event(run)

    def end(self, ending: Ending) -> None:
        """Tell the end of the command, and wait until all is delivered, or for `PATIENCE`."""
        seconds = PATIENCE_OF_INTERRUPTED if ending.interrupted else PATIENCE
        until = time.monotonic() + seconds
        if self._messages is not None:
            announced = AnnouncedCommand(self._input, self._output, self._page, self._runs, ending)
            with _harmless("--notify: the message is not sent"):
                self._messages.put(self._form(announced, datetime.now(UTC)))
        for outbox in (self._messages, self._events):
            if outbox is not None:
                outbox.close(until)

    def _put_event(self, run: AnnouncedRun) -> None:
        if self._events is not None:
            with _harmless("--lineage: an event is not sent"):
                source, output = canonical_url(self._input), canonical_url(self._output)
                self._events.put(run_event(source, output, run, datetime.now(UTC)))


@contextmanager
def _harmless(failed: str) -> Iterator[None]:
    """Print errors instead of raising them: whoever is told, the labels count."""
    try:
        yield
    except Exception as error:  # figures come from Ray and from stores
        print_line(f"{failed}: {type(error).__name__}")


def one_line(text: str) -> str:
    """The first line of a text, without secrets and control characters."""
    lines = text.strip().splitlines() or [""]
    return printable(mask(lines[0]))[:LONGEST_ERROR]


def _post_signed(receiver: Receiver, key: bytes | None, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    message_id = f"msg_{secrets.token_hex(16)}"  # of all attempts

    def headers() -> Mapping[str, str]:
        return {} if key is None else signed_headers(key, message_id, body, time.time())

    post(receiver, body, headers)


def _lineage(place: str, output: str) -> tuple[str, Deliver]:
    """The name of the receiver of events, and how an event is delivered to it."""
    if is_web(place):
        receiver = Receiver("--lineage", place)
        return str(receiver), partial(_post_event, receiver)
    from jobs.output.protected_files import refuse_within_output  # slow to import

    open_location(place, "--lineage")  # InputError for a protocol or a package that is not there
    refuse_within_output(output, place, "--lineage")
    deliver = _append_event if is_local(place) else _create_event
    return f"--lineage {mask(place)}", partial(deliver, place)


def _post_event(receiver: Receiver, event: dict[str, Any]) -> None:
    key = os.environ.get(API_KEY, "").strip()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    post(receiver, json.dumps(event).encode(), lambda: headers)


def _append_event(place: str, event: dict[str, Any]) -> None:
    """Append one line to a file, in one write, so that lines of several commands stay whole."""
    line = f"{json.dumps(event)}\n".encode()
    try:
        with Path(place.removeprefix(FILE)).open("ab", buffering=0) as file:
            file.write(line)
    except OSError as error:
        raise NotDelivered(str(error.strerror)) from error


def _create_event(place: str, event: dict[str, Any]) -> None:
    """Create an object of the event below a folder of a bucket. Names sort by time."""
    name = f"{event['eventTime']}-{event['run']['runId']}-{event['eventType']}.json"
    url = join(place, name.replace(":", "").replace("+0000", "Z"))
    try:
        create_whole(*open_location(url, "--lineage"), json.dumps(event).encode())
    except Exception as error:  # stores raise many types
        raise NotDelivered(describe_error(error, url)) from error
