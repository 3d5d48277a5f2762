"""An endpoint with files and batches on loopback, whose runs of `label` need no Ray."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from openai import OpenAI
from openai.types import Batch

from jobs.label.options import LabelOptions
from jobs.serve.batches.batches import Batches
from jobs.serve.batches.run import Process, Starter, Variables, environment, label_words
from jobs.serve.batches.settings import BatchSettings, batch_settings
from jobs.serve.batches.store import Store
from jobs.serve.engine.engine import Engine
from jobs.serve.settings.options import ServeOptions
from jobs.serve.settings.settings import ApiSettings
from tests.support.serving import MODEL, serving

ENDED = ("completed", "failed", "expired", "cancelled")
WAIT_SECONDS, LOOK_SECONDS = 300.0, 0.1
Request = dict[str, Any]


class StandingRun:
    """A run of `label` that stands still, until it may end: then it has refused."""

    def __init__(self, may_end: threading.Event | None = None):
        self._may_end = may_end or threading.Event()

    def exit_code(self) -> int | None:
        return 2 if self._may_end.is_set() else None

    def reason(self) -> str:
        return "detr-batch: no"

    def stop(self) -> None:
        pass

    leave = stop


def label_alone(options: LabelOptions, variables: Variables) -> Process:
    """Start `label` without Ray."""
    words = ["tests.support.alone", "label", *label_words(options)]
    return Process(words, environment(variables, None))


def settings_of(api: ApiSettings) -> BatchSettings:
    """Batches of shapes-tiny in fp32, as the engine of the tests computes."""
    made = batch_settings(ServeOptions(model=MODEL, precision="fp32", device="cpu"))
    return replace(made, api=api)


@contextmanager
def batching(
    url: str, engine: Engine, api: ApiSettings | None = None, start: Starter = label_alone
) -> Iterator[str]:
    """Serve with batches; the address of the endpoint."""
    api = api or ApiSettings()
    store = Store(url)
    batches = Batches(store, settings_of(api), start, LOOK_SECONDS)
    with serving(api, engine, batches=store) as address:
        batches.start()
        try:
            yield address
        finally:
            batches.close()


def client_of(address: str, key: str = "none") -> OpenAI:
    """OpenAI's client, which repeats nothing."""
    return OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def request(custom_id: str, images: Sequence[str], **body: Any) -> Request:
    """A line of the input of a batch."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/detections",
        "body": {"model": MODEL, "images": list(images), **body},
    }


def create(client: OpenAI, lines: Sequence[Request | str], **options: Any) -> Batch:
    """Upload the lines, and create a batch of them."""
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    content = "".join(f"{text}\n" for text in texts).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    chosen: Any = {"endpoint": "/v1/detections", "completion_window": "24h", **options}
    return client.batches.create(input_file_id=file.id, **chosen)


def create_lake(client: OpenAI, **metadata: str) -> Batch:
    """Create a batch over the lake `input`, into OUTPUT `output`."""
    options: Any = {"endpoint": "/v1/detections", "completion_window": "24h"}
    return client.batches.create(input_file_id="none", metadata=metadata, **options)


def wait_for(client: OpenAI, batch: Batch, *statuses: str) -> Batch:
    """The batch, once it has one of the statuses (without any: once it has ended)."""
    until = time.monotonic() + WAIT_SECONDS
    while batch.status not in (statuses or ENDED):
        assert batch.status not in ENDED, batch
        assert time.monotonic() < until, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines_of(client: OpenAI, file_id: str | None) -> dict[str, Any]:
    """The lines of an output or error file, by their custom ids."""
    assert file_id is not None
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines)
    return found
