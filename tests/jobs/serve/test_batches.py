"""`/v1/batches` with OpenAI's client: what comes out of a batch, and its states."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, ConflictError, NotFoundError, OpenAI
from openai.types import Batch

from jobs.label.options import LabelOptions
from jobs.output.views import connect
from jobs.serve.batches.run import Process, Variables, environment
from jobs.serve.batches.work import BatchWork
from jobs.serve.engine.engine import Engine
from jobs.serve.http.images import bytes_of_data
from jobs.serve.http.keys import add_key
from jobs.serve.settings.settings import ApiSettings
from tests.support.batching import (
    batching,
    client_of,
    create,
    label_alone,
    lines_of,
    request,
    wait_for,
)
from tests.support.coroutines import run_coroutine
from tests.support.serving import MODEL, data_uri, scene_file

LINES, IMAGES = 200, 6  # lines of the large batch, and distinct images in them
BROKEN = data_uri(b"no image")


@pytest.fixture(scope="module")
def images() -> list[str]:
    return [data_uri(scene_file(seed)) for seed in range(IMAGES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


@pytest.fixture(scope="module")
def client(folder: Path, engine: Engine) -> Iterator[OpenAI]:
    settings = ApiSettings(usd_per_1000_images=0.047)
    with batching(str(folder), engine, settings) as address:
        yield client_of(address)


def large_batch(images: list[str]) -> list[dict[str, Any]]:
    """200 lines, of which 4 ask for nothing valid, and 2 for images that are none."""
    lines = [request(f"line-{n}", [images[n % IMAGES]]) for n in range(LINES - 6)]
    lines += [
        request("no-images", []),
        request("bad-threshold", images[:1], threshold=2),
        request("private", ["http://127.0.0.1/secret.jpg", "file:///etc/passwd", "/etc/passwd"]),
        request("bucket", ["s3://other/secret.jpg"]),
        request("broken", [BROKEN]),
        request("half", [images[3], BROKEN, images[4], "s3://other/a.jpg"], threshold=0.9),
    ]
    return lines


@pytest.fixture(scope="module")
def completed(client: OpenAI, images: list[str]) -> Batch:
    batch = create(client, large_batch(images), metadata={"purpose": "test"})
    assert batch.status == "validating" and batch.model == MODEL
    return wait_for(client, batch)


def test_a_batch_counts_its_images_and_says_its_cost(completed: Batch) -> None:
    assert completed.status == "completed"
    counts = completed.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (LINES + 5, LINES - 4, 9)
    assert completed.metadata == {"purpose": "test"}
    times = [completed.created_at, completed.in_progress_at, completed.finalizing_at]
    times += [completed.completed_at, completed.expires_at]
    assert all(times) and times == sorted(times)  # type: ignore[type-var]
    usage = completed.usage
    assert usage is not None and usage.model_extra is not None
    assert usage.model_extra["cost_usd"] == pytest.approx((LINES - 4) * 0.047 / 1000)


def test_lines_have_the_answers_of_the_route(
    client: OpenAI, completed: Batch, images: list[str]
) -> None:
    lines = lines_of(client, completed.output_file_id)
    assert len(lines) == LINES - 5
    for number, image in enumerate(images[:5]):
        answered = client.post(
            "/detections", body={"model": MODEL, "images": [image]}, cast_to=dict[str, Any]
        )
        line = lines[f"line-{number}"]
        assert line["error"] is None and line["response"]["status_code"] == 200
        body = line["response"]["body"]
        assert body["data"] == answered["data"] and body["data"][0]["detections"]
        assert body["usage"] == answered["usage"]
    same = [lines[f"line-{n}"]["response"]["body"]["data"] for n in (0, IMAGES, 2 * IMAGES)]
    assert same[0] == same[1] == same[2]


def test_boxes_are_those_of_label(
    client: OpenAI, completed: Batch, images: list[str], tmp_path: Path
) -> None:
    photos, output = tmp_path / "photos", str(tmp_path / "labels")
    photos.mkdir()
    for number, image in enumerate(images):
        (photos / f"{number}.jpg").write_bytes(bytes_of_data(image, 1 << 20))
    options = LabelOptions(str(photos), output, model=MODEL, precision="fp32", device="cpu")
    run = label_alone(options, {})
    while run.exit_code() is None:
        time.sleep(0.1)
    assert run.exit_code() == 0, run.reason()
    with connect(output) as labelled:
        rows = labelled.execute("SELECT score, x_min, y_min, x_max, y_max FROM latest").fetchall()
    assert rows
    answered = [
        (box["score"], *box["box"])
        for line in lines_of(client, completed.output_file_id).values()
        for image in line["response"]["body"]["data"]
        for box in image["detections"]
    ]
    assert set(answered) == set(rows)


def test_a_threshold_is_that_of_its_line(
    client: OpenAI, completed: Batch, images: list[str]
) -> None:
    lines = lines_of(client, completed.output_file_id)
    body = lines["half"]["response"]["body"]
    for index, line in ((0, "line-3"), (2, "line-4")):
        whole = lines[line]["response"]["body"]["data"][0]["detections"]
        strict = [box for box in whole if box["score"] >= 0.9]
        assert body["data"][index]["detections"] == strict
    codes = [image["error"] and image["error"]["code"] for image in body["data"]]
    assert codes == [None, "undecodable", None, "address_not_allowed"]


def test_bad_lines_are_in_the_error_file(client: OpenAI, completed: Batch) -> None:
    lines = lines_of(client, completed.error_file_id)
    found = {name: line["response"]["body"]["error"]["code"] for name, line in lines.items()}
    assert found == {
        "no-images": "invalid_value",
        "bad-threshold": "invalid_value",
        "private": "address_not_allowed",
        "bucket": "address_not_allowed",
        "broken": "undecodable",
    }
    assert all(line["response"]["status_code"] == 400 for line in lines.values())
    file = client.files.retrieve(str(completed.error_file_id))
    assert file.purpose == "batch_output" and file.filename.startswith(completed.id)


def test_nothing_but_documents_and_answers_stays(completed: Batch, folder: Path) -> None:
    until = time.monotonic() + 60
    while list(folder.glob("batches/open/*")):
        assert time.monotonic() < until
        time.sleep(0.1)
    left = {path.name for path in folder.glob(f"batches/*/{completed.id}/*")}
    assert left <= {"created.json", "validated.json", "labelled.json", "progress.json"} | {
        "ended.json",
        "claim.json",
    }


@pytest.mark.slow
def test_chats_are_answered_in_their_schema(client: OpenAI, images: list[str]) -> None:
    schema = {
        "type": "object",
        "properties": {
            "images": {
                "type": "array",
                "items": {"type": "object", "properties": {"width": {"type": "integer"}}},
            }
        },
        "required": ["images"],
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "sizes", "schema": schema}}
    image = {"type": "image_url", "image_url": {"url": images[0]}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": [image]}]}
    url = "/v1/chat/completions"
    bodies = {
        "plain": body,
        "sizes": {**body, "response_format": wanted},
        "no-image": {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]},
    }
    lines = [{"custom_id": n, "method": "POST", "url": url, "body": b} for n, b in bodies.items()]
    batch = wait_for(client, create(client, lines, endpoint=url))
    answers = lines_of(client, batch.output_file_id)
    sizes = answers["sizes"]["response"]["body"]["choices"][0]["message"]["content"]
    assert list(json.loads(sizes)["images"][0]) == ["width"]
    expected = client.chat.completions.create(**body)  # type: ignore[call-overload]
    plain = answers["plain"]["response"]["body"]["choices"][0]["message"]["content"]
    assert plain == expected.choices[0].message.content
    error = lines_of(client, batch.error_file_id)["no-image"]["response"]["body"]["error"]
    assert error["code"] == "missing_image"


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("no json", "invalid_json_line"),
        ("[]", "invalid_json_line"),
        (request("first", [BROKEN]), "duplicate_custom_id"),
        (request("", [BROKEN]), "invalid_custom_id"),
        ({**request("b", [BROKEN]), "method": "GET"}, "invalid_method"),
        ({**request("b", [BROKEN]), "url": "/v1/embeddings"}, "invalid_url"),
        ({**request("b", [BROKEN]), "body": None}, "missing_required_parameter"),
        (request("b", [BROKEN], model="gpt-9"), "model_not_found"),
        ('{"custom_id": "\\ud800", "method": "POST"}', "invalid_custom_id"),
    ],
)
def test_lines_that_are_no_requests_fail_the_batch(client: OpenAI, bad: Any, code: str) -> None:
    batch = wait_for(client, create(client, [request("first", [BROKEN]), bad]))
    assert batch.status == "failed" and batch.failed_at
    assert batch.errors is not None and batch.errors.data is not None
    (error,) = batch.errors.data
    assert (error.code, error.line) == (code, 2)
    assert batch.output_file_id is None


def test_a_batch_of_nothing_valid_completes_without_label(client: OpenAI) -> None:
    batch = wait_for(client, create(client, [request("a", ["file:///etc/passwd"])]))
    assert batch.status == "completed" and batch.output_file_id is None
    assert list(lines_of(client, batch.error_file_id)) == ["a"]


def test_an_input_that_is_gone_fails_the_batch(folder: Path, client: OpenAI) -> None:
    file = client.files.create(file=("a", b"\n \n"), purpose="batch")
    options: Any = {"endpoint": "/v1/detections", "completion_window": "24h"}
    batch = wait_for(client, client.batches.create(input_file_id=file.id, **options))
    assert batch.errors and batch.errors.data and batch.errors.data[0].code == "empty_file"
    client.files.delete(file.id)
    with pytest.raises(NotFoundError, match="no file"):
        client.batches.create(input_file_id=file.id, **options)


def test_bad_requests_are_refused(client: OpenAI, completed: Batch) -> None:
    def refused(reason: str, **options: Any) -> None:
        with pytest.raises(BadRequestError, match=reason):
            chosen = {"endpoint": "/v1/detections", "completion_window": "24h", **options}
            client.batches.create(input_file_id=completed.input_file_id, **chosen)

    refused("endpoint", endpoint="/v1/embeddings")
    refused("completion_window", completion_window="1h")
    refused("metadata", metadata={str(n): "" for n in range(17)})
    refused("metadata", metadata={"k" * 65: ""})
    refused("metadata", metadata={"k": "v" * 513})
    refused("output_expires_after", output_expires_after={"anchor": "created_at", "seconds": 3600})
    with pytest.raises(BadRequestError, match="purpose"):
        client.batches.create(
            input_file_id=str(completed.output_file_id),
            endpoint="/v1/detections",  # type: ignore[arg-type]
            completion_window="24h",
        )
    with pytest.raises(ConflictError, match="completed"):
        client.batches.cancel(completed.id)
    with pytest.raises(NotFoundError):
        client.batches.retrieve("batch_..")


class Never(Process):
    """A run that never ends by itself."""

    def __init__(self) -> None:
        super().__init__(["timeit", "-n1", "import time; time.sleep(600)"], {})


def never(options: LabelOptions, variables: Variables) -> Process:
    return Never()


@pytest.mark.parametrize("is_read", [True, False])
def test_cancelled_batches_end(
    is_read: bool,
    tmp_path: Path,
    engine: Engine,
    images: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of them runs, the other waits for it: its input is read meanwhile, or not yet."""
    if not is_read:
        monkeypatch.setattr(BatchWork, "read_input", lambda *_: True)
    with batching(str(tmp_path), engine, start=never) as address:
        client = client_of(address)
        running, waiting = (create(client, [request("a", images[:1])]) for _ in range(2))
        running = wait_for(client, running, "in_progress")
        assert running.request_counts is not None and running.request_counts.total == 1
        if is_read:
            waiting = wait_for(client, waiting, "in_progress")
        assert client.batches.retrieve(waiting.id).status == waiting.status
        assert client.batches.cancel(waiting.id).status in ("cancelling", "cancelled")
        waiting = wait_for(client, waiting)
        assert waiting.status == "cancelled" and bool(waiting.error_file_id) == is_read
        assert client.batches.retrieve(running.id).status == "in_progress"
        client.batches.cancel(running.id)
        running = wait_for(client, running)
        assert running.status == "cancelled" and running.cancelling_at and running.cancelled_at
        for batch in (running, waiting) if is_read else (running,):
            line = lines_of(client, batch.error_file_id)["a"]
            assert line["response"] is None and line["error"]["code"] == "batch_cancelled"
        assert client.batches.cancel(running.id).status == "cancelled"


def test_batches_expire(
    tmp_path: Path, engine: Engine, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.serve.batches.routes.WINDOW_SECONDS", 2)
    with batching(str(tmp_path), engine, start=never) as address:
        client = client_of(address)
        batch = wait_for(client, create(client, [request("a", images[:1])]))
        assert batch.status == "expired" and batch.expired_at
        line = lines_of(client, batch.error_file_id)["a"]
        assert line["error"]["code"] == "batch_expired"


def test_batches_are_listed_page_by_page(tmp_path: Path, engine: Engine) -> None:
    keys = str(tmp_path / "keys.json")
    ours, theirs = (add_key(keys, name)[1] for name in ("ours", "theirs"))
    with batching(str(tmp_path), engine, ApiSettings(keys=keys), never) as address:
        client, other = client_of(address, ours), client_of(address, theirs)
        with ThreadPoolExecutor(5) as pool:
            made = list(pool.map(lambda n: create(client, [request(str(n), [])]), range(5)))
        newest_first = sorted((batch.id for batch in made), reverse=True)
        assert len(set(newest_first)) == 5
        assert [batch.id for batch in client.batches.list(limit=2)] == newest_first
        assert not other.batches.list().data
        for ask in (other.batches.retrieve, other.batches.cancel):
            with pytest.raises(NotFoundError):
                ask(made[0].id)
        with pytest.raises(NotFoundError, match="no file"):
            other.batches.create(
                input_file_id=made[0].input_file_id,
                endpoint="/v1/detections",  # type: ignore[arg-type]
                completion_window="24h",
            )


@pytest.mark.slow
def test_a_batch_is_run_by_one_of_two_servers(
    tmp_path: Path, engine: Engine, images: list[str]
) -> None:
    runs = []

    def counted(options: LabelOptions, variables: Variables) -> Process:
        runs.append(options.output)
        return label_alone(options, variables)

    with (
        batching(str(tmp_path), engine, start=counted) as one,
        batching(str(tmp_path), engine, start=counted) as two,
    ):
        batch = wait_for(client_of(two), create(client_of(one), [request("a", images[:1])]))
        assert batch.status == "completed" and len(runs) == 1


@pytest.mark.parametrize(
    ("words", "attempts"), [(["py_compile", "/nowhere"], 5), (["jobs.cli", "label", "--odd"], 1)]
)
def test_a_run_that_fails_again_and_again_fails_the_batch(
    tmp_path: Path, engine: Engine, images: list[str], words: list[str], attempts: int
) -> None:
    runs = []

    def failing(options: LabelOptions, variables: Variables) -> Process:
        runs.append(options)
        return Process(words, environment(variables, None))

    with batching(str(tmp_path), engine, start=failing) as address:
        client = client_of(address)
        batch = wait_for(client, create(client, [request("a", images[:1])]))
        assert batch.status == "failed" and len(runs) == attempts
        assert batch.errors and batch.errors.data and batch.errors.data[0].code == "label_failed"
        if attempts == 1:  # `label` refused it: its words, without the time of its log
            assert str(batch.errors.data[0].message).startswith("detr-batch")


def test_the_asynchronous_client(client: OpenAI, completed: Batch) -> None:
    async def use() -> None:
        async with AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as other:
            assert completed.id in {batch.id async for batch in other.batches.list(limit=3)}
            found = await other.batches.retrieve(completed.id)
            content = await other.files.content(str(found.output_file_id))
            assert len(content.text.splitlines()) == LINES - 5

    run_coroutine(use())
