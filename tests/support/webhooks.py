"""A receiver of webhooks on loopback, which keeps what it is sent."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from ssl import SSLContext
from typing import Any

from tests.support.web import QuietHandler, served


@dataclass(frozen=True)
class Answer:
    """How the receiver answers one request."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # before it answers


@dataclass(frozen=True)
class Request:
    """What the receiver was sent. Names of headers are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Webhook:
    """A receiver. It gives `answers` in their order, and after them 200."""

    answers: list[Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    url: str = ""


class _Handler(QuietHandler):
    def __init__(self, webhook: Webhook, *options: Any) -> None:
        self._webhook = webhook
        super().__init__(*options)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._webhook.requests.append(Request(self.path, headers, body))
        answer = self._webhook.answers.pop(0) if self._webhook.answers else Answer()
        time.sleep(answer.seconds)
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def webhook(*answers: Answer, context: SSLContext | None = None) -> Iterator[Webhook]:
    """Serve a receiver, whose address has a secret path."""
    found = Webhook(list(answers))
    with served(partial(_Handler, found), context) as address:
        found.url = f"{address}/services/{SECRET_PATH}"
        yield found


SECRET_PATH = "T0KEN/B0KEN/5ecre7"
