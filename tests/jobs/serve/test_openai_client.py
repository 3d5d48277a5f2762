"""The unmodified client of OpenAI, over loopback, against what this process detects itself."""

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, create_model

from pipeline.local import LocalDetector, load
from tests.support.coroutines import run_coroutine
from tests.support.serving import MODEL, data_uri, scene_file

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def client(endpoint: str) -> OpenAI:
    return OpenAI(base_url=f"{endpoint}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def local() -> LocalDetector:
    return load(MODEL, device="cpu", precision="fp32")


def user(*addresses: str) -> list[Any]:
    """One message with images and words."""
    images = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return [{"role": "user", "content": [{"type": "text", "text": "What is there?"}, *images]}]


def detections_of(client: OpenAI, **body: Any) -> Any:
    return client.post("/detections", body={"model": MODEL, **body}, cast_to=object)


def expected(local: LocalDetector, encoded: bytes) -> list[Any]:
    from PIL import Image

    found = local(Image.open(io.BytesIO(encoded)))
    return list(zip(found.labels, found.scores, found.boxes, strict=True))


def assert_same(detections: list[Any], wanted: list[Any]) -> None:
    assert [one["label"] for one in detections] == [label for label, *_ in wanted] != []
    assert [one["score"] for one in detections] == pytest.approx([score for _, score, _ in wanted])
    for one, (_, _, box) in zip(detections, wanted, strict=True):
        assert one["box"] == pytest.approx(box, abs=0.01)


def test_detections_are_those_of_the_library(client: OpenAI, local: LocalDetector) -> None:
    files = [scene_file(seed) for seed in range(3)]
    answer = detections_of(client, images=[data_uri(file) for file in files])
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    for one, file in zip(answer["data"], files, strict=True):
        assert_same(one["detections"], expected(local, file))
    assert answer["usage"]["images"] == 3
    assert answer["usage"]["cost_usd"] == pytest.approx(3 * 0.047 / 1000)
    assert answer["object"] == "detections" and answer["model"] == MODEL


def test_the_threshold_of_a_request_is_kept(client: OpenAI) -> None:
    image = data_uri(scene_file())
    low = detections_of(client, images=[image], threshold=0)["data"][0]["detections"]
    high = detections_of(client, images=[image], threshold=0.9)["data"][0]["detections"]
    assert len(low) > len(high)
    assert high == [one for one in low if one["score"] >= 0.9]


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    assert "circle" in (model.model_extra or {})["labels"]
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt-4o")
    assert raised.value.code == "model_not_found"


class Object(BaseModel):
    label: str
    score: float
    box: list[float]


class Image(BaseModel):
    status: Literal["ok", "failed"]
    detections: list[Object]


class Answer(BaseModel):
    images: list[Image]


def test_chat_is_parsed_into_the_clients_own_class(client: OpenAI, local: LocalDetector) -> None:
    file = scene_file(1)
    completion = client.chat.completions.parse(
        model=MODEL, messages=user(data_uri(file)), response_format=Answer
    )
    parsed = completion.choices[0].message.parsed
    assert parsed is not None
    (image,) = parsed.images
    assert_same([one.model_dump() for one in image.detections], expected(local, file))
    assert set(json.loads(completion.choices[0].message.content or "")["images"][0]) == {
        "status", "detections",
    }  # fmt: skip
    assert completion.usage is not None and completion.usage.model_extra == {
        "images": 1, "cost_usd": pytest.approx(0.047 / 1000),
    }  # fmt: skip


def test_the_published_class_is_parsed(client: OpenAI) -> None:
    from jobs.serve.protocol.response_format import ChatAnswer

    completion = client.chat.completions.parse(
        model=MODEL, messages=user(data_uri(scene_file())), response_format=ChatAnswer
    )
    parsed = completion.choices[0].message.parsed
    assert parsed is not None and parsed.images[0].detections


@pytest.mark.parametrize("form", [None, {"type": "json_object"}, {"type": "text"}])
def test_chat_without_a_schema_answers_the_published_one(client: OpenAI, form: Any) -> None:
    given = {} if form is None else {"response_format": form}
    completion = client.chat.completions.create(
        model=MODEL, messages=user(data_uri(scene_file())), extra_body={"threshold": 0.5}, **given
    )
    content = json.loads(completion.choices[0].message.content or "")
    assert all(one["score"] >= 0.5 for one in content["images"][0]["detections"])
    assert completion.choices[0].finish_reason == "stop"


def test_a_schema_that_no_answer_meets_is_refused(client: OpenAI) -> None:
    class Person(BaseModel):
        name: str

    nested = create_model("Nested", images=(list[Person], ...))
    for wanted, reason in (
        (Person, "has no `name`"),
        (nested, r"answer\.images\[\] has no `name`"),
    ):
        with pytest.raises(openai.BadRequestError, match=reason):
            client.chat.completions.parse(
                model=MODEL, messages=user("http://127.0.0.1/"), response_format=wanted
            )


NOT_OFFERED: dict[str, Any] = {
    "n": 2,
    "stream": True,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "temperature": 0.7,
    "top_p": 0.5,
    "max_tokens": 10,
    "logprobs": True,
    "stop": "x",
    "frequency_penalty": 1,
}


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_is_not_offered_is_refused_by_name(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError, match=name) as raised:
        client.chat.completions.create(
            model=MODEL, messages=user(data_uri(scene_file())), **{name: NOT_OFFERED[name]}
        )
    assert raised.value.type == "invalid_request_error"
    assert (raised.value.param or "").startswith(name)


def test_what_changes_nothing_is_accepted(client: OpenAI) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Find shapes."}, *user(data_uri(scene_file()))],
        n=1,
        stream=False,
        temperature=0,
        top_p=1,
        seed=7,
        user="somebody",
        tools=[],
    )


def test_one_bad_image_costs_no_other(client: OpenAI) -> None:
    good = data_uri(scene_file())
    images = [
        good, data_uri(b"no image"), "data:image/png;base64,!!", "http://127.0.0.1:1/a.jpg",
        "file:///etc/passwd", "data:,", "nonsense", data_uri(b""), good,
    ]  # fmt: skip
    data = detections_of(client, images=images)["data"]
    assert [one["status"] for one in data] == ["ok", *["failed"] * 7, "ok"]
    codes = [one["error"]["code"] for one in data[1:-1]]
    assert codes == [
        "undecodable", "bad_address", "address_not_allowed", "address_not_allowed", "bad_address",
        "address_not_allowed", "empty_file",
    ]  # fmt: skip
    assert data[0]["detections"] == data[-1]["detections"]


def test_bad_images_alone_are_items_and_in_a_chat_of_one_an_error(client: OpenAI) -> None:
    bad = data_uri(b"no image")
    answer = detections_of(client, images=[bad])
    assert answer["data"][0]["status"] == "failed" and answer["usage"]["images"] == 0
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=MODEL, messages=user(bad))
    assert raised.value.code == "undecodable"
    both = client.chat.completions.create(model=MODEL, messages=user(bad, bad))
    content = json.loads(both.choices[0].message.content or "")
    assert [one["status"] for one in content["images"]] == ["failed", "failed"]


def test_mistakes_are_named(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"this server has `shapes-tiny`"):
        client.chat.completions.create(model="gpt-4o", messages=user("data:,"))
    with pytest.raises(openai.BadRequestError, match="The messages have no image"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="`images` is missing"):
        detections_of(client)
    with pytest.raises(openai.BadRequestError, match="`colour` is unknown or not offered"):
        detections_of(client, images=["data:,"], colour="red")
    with pytest.raises(openai.BadRequestError, match="not offered: its name is `threshold`"):
        detections_of(client, images=["data:,"], score_threshold=0.5)
    with pytest.raises(openai.BadRequestError, match=r"65 images, and 64 are allowed"):
        detections_of(client, images=["data:,"] * 65)
    audio: Any = [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\]\.content"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": audio}])
    with pytest.raises(openai.NotFoundError, match="There is no POST /v1/embeddings"):
        client.embeddings.create(model=MODEL, input="x")
    with pytest.raises(openai.NotFoundError, match="without --batches"):
        client.files.list()


def test_request_ids_are_the_clients_or_new(client: OpenAI) -> None:
    raw = client.models.with_raw_response.list()
    assert raw.headers["x-request-id"].startswith("req_")
    raw = client.models.with_raw_response.list(extra_headers={"x-request-id": "mine-1"})
    assert raw.headers["x-request-id"] == "mine-1"
    raw = client.models.with_raw_response.list(extra_headers={"x-request-id": "a b\tc"})
    assert raw.headers["x-request-id"].startswith("req_")


def test_files_of_a_form(client: OpenAI, endpoint: str, local: LocalDetector) -> None:
    import requests

    file = scene_file(2)
    files = [("images", ("a.jpg", file)), ("images", ("b.jpg", b"no image"))]
    form = {"model": MODEL, "threshold": "0.3"}
    answer = requests.post(f"{endpoint}/v1/detections", data=form, files=files, timeout=30).json()
    assert_same(answer["data"][0]["detections"], expected(local, file))
    assert answer["data"][1]["error"]["code"] == "undecodable"
    for wrong, param in (({**form, "threshold": "x"}, "threshold"), ({}, "model")):
        refused = requests.post(f"{endpoint}/v1/detections", data=wrong, files=files)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param
    refused = requests.post(f"{endpoint}/v1/detections", data=form, files={"other": b"x"})
    assert refused.json()["error"]["param"] == "images"


def test_many_requests_of_the_async_client(endpoint: str, local: LocalDetector) -> None:
    files = [scene_file(seed) for seed in range(4)]

    async def ask() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{endpoint}/v1", api_key="none") as client:
            calls = [
                client.chat.completions.create(model=MODEL, messages=user(data_uri(file)))
                for file in files * 3
            ]
            return await asyncio.gather(*calls)

    answers = run_coroutine(ask())
    for answer, file in zip(answers, files * 3, strict=True):
        content = json.loads(answer.choices[0].message.content)
        assert_same(content["images"][0]["detections"], expected(local, file))


def test_health_and_metrics(endpoint: str) -> None:
    import requests
    from prometheus_client.parser import text_string_to_metric_families

    assert requests.get(f"{endpoint}/health/live").json() == {"status": "ok"}
    assert requests.get(f"{endpoint}/health/ready", timeout=30).status_code == 200
    text = requests.get(f"{endpoint}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (ready,) = [
        one.value for one in families["detr_batch_serve_requests"].samples
        if one.name.endswith("_total") and one.labels["route"] == "/health/ready"
    ]  # fmt: skip
    assert ready >= 1


@pytest.mark.parametrize("document", ["README.md", "jobs/serve/README.md"])
def test_the_example_of_the_documents_runs(
    document: str, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "import OpenAI" in block]
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(scene_file())
    script = example.replace("photo.jpg", str(photo))
    script = re.sub(r"https://example.com/\w+\.jpg", data_uri(scene_file()), script)
    exec(script.replace("http://127.0.0.1:8000", endpoint), {"KEY": "none"})
    assert '"status":"ok"' in capsys.readouterr().out.replace(" ", "")
