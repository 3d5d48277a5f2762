"""POST a JSON document to a receiver, with few retries. No error shows the address."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from jobs.label.notify.receiver import Receiver

if TYPE_CHECKING:
    import requests

ATTEMPTS = 3
PATIENCE = 30.0  # seconds in all
FIRST_PAUSE = 2.0  # seconds before the second attempt, of which up to half is left out at random
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 10.0
PASSING = frozenset({408, 425, 429})  # and 5xx: another attempt may succeed


class NotDelivered(RuntimeError):
    """A message that its receiver did not take. The message has the reason, without the address."""


@dataclass(frozen=True)
class _Failure:
    """Why one attempt failed. `wait` are the seconds that the receiver asks to wait."""

    reason: str
    passing: bool
    wait: float = 0.0


def post(receiver: Receiver, body: bytes, headers: Callable[[], Mapping[str, str]]) -> None:
    """Send `body`. `headers` makes the headers of each attempt. Raises NotDelivered.

    Redirects are not followed, because a signature or a key is for one receiver alone.
    """
    deadline = time.monotonic() + PATIENCE
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        failure = _attempt(receiver, body, headers(), deadline - time.monotonic())
        if failure is None:
            return
        if not failure.passing:
            raise NotDelivered(failure.reason)
        wait = max(failure.wait, random.uniform(pause / 2, pause))
        if attempt == ATTEMPTS or time.monotonic() + wait > deadline:
            raise NotDelivered(f"{failure.reason} ({attempt} of {ATTEMPTS} attempts)")
        time.sleep(wait)
        pause *= 2


def _attempt(
    receiver: Receiver, body: bytes, headers: Mapping[str, str], seconds: float
) -> _Failure | None:
    """Send once, within `seconds`. None if the receiver took it."""
    import requests  # slow to import; most commands tell nobody

    fixed = {
        "Content-Type": "application/json",
        "User-Agent": f"detr-batch/{version('detr-batch')}",
    }
    limit = (min(CONNECT_SECONDS, seconds), min(ANSWER_SECONDS, seconds))
    try:
        with requests.post(
            receiver.url,
            data=body,
            headers={**fixed, **headers},
            auth=_KeepAuthorization() if "Authorization" in headers else None,
            timeout=limit,
            allow_redirects=False,
            stream=True,  # the body of the answer is not read
        ) as answer:
            return _failure_of(answer)
    except requests.exceptions.SSLError:
        return _Failure("its certificate is not valid for this machine", passing=False)
    except requests.exceptions.Timeout:
        return _Failure("it did not answer in time", passing=True)
    except requests.exceptions.ConnectionError:
        return _Failure("it cannot be reached", passing=True)
    except (requests.exceptions.RequestException, ValueError) as error:
        return _Failure(f"it cannot be asked: {type(error).__name__}", passing=False)


class _KeepAuthorization:
    """Keeps our header: without it, requests (2.34) sends what ~/.netrc has for the host."""

    def __call__(self, request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        return request


def _failure_of(answer: "requests.Response") -> _Failure | None:
    status = answer.status_code
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        reason = f"it answered {status}, a redirect: give the address to which it leads"
        return _Failure(reason, passing=False)
    passing = status in PASSING or (status >= 500 and status != 501)
    wait = _seconds_to_wait(answer.headers.get("Retry-After", ""))
    reason = f"it answered {status}"
    if passing and wait > PATIENCE:
        reason += f", and asks to wait for {wait:.0f} s"
    return _Failure(reason, passing, wait)


def _seconds_to_wait(text: str) -> float:
    """The seconds of a header `Retry-After`, which has them or a date; 0 if it has neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        then = parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, OverflowError):  # a year that no date has
        return 0.0
    return max(0.0, (then - datetime.now(UTC)).total_seconds())
