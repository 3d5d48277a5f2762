"""`POST /v1/chat/completions`: the images of a chat in, JSON text with their boxes out.

The words of the messages change nothing, because the detector reads none.
"""

import json
import secrets
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from jobs.serve.http.detecting import check_model, detect, service_of, usage_of
from jobs.serve.http.detections import Address, Threshold
from jobs.serve.protocol.answers import ImageAnswer, Usage
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import parse_body
from jobs.serve.protocol.response_format import ChatAnswer, ResponseFormat, check_format, shaped

router = APIRouter()
_NO_EFFECT = "Accepted where it changes nothing."


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Part):
    """Words, which the detector does not read."""

    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """The address of an image, as in `/v1/detections`."""

    url: Address
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(_Part):
    """An image to detect in."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Part):
    """One message of the chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None  # of an earlier answer that is sent again


class ChatRequest(BaseModel):
    """A chat whose images are detected in, in their order.

    What OpenAI's API also has is accepted only with the values at which it changes nothing.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="The name in `/v1/models`.")
    messages: list[Message] = Field(min_length=1)
    response_format: ResponseFormat | None = Field(
        default=None, description="The answer keeps what this schema has; ChatAnswer without one."
    )
    threshold: Threshold | None = Field(
        default=None, description="Ours: the least score of a detection (`extra_body`)."
    )
    n: Literal[1] | None = Field(default=None, description=_NO_EFFECT)
    stream: Literal[False] | None = Field(default=None, description=_NO_EFFECT)
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(
        default=None, description=_NO_EFFECT
    )
    temperature: Annotated[float, Field(ge=0, le=1, multiple_of=1)] | None = Field(
        default=None, description=f"{_NO_EFFECT} 0 and 1 are."
    )
    top_p: Annotated[float, Field(ge=1, le=1)] | None = Field(default=None, description=_NO_EFFECT)
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = Field(
        default=None, description=_NO_EFFECT
    )
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = Field(
        default=None, description=_NO_EFFECT
    )
    logprobs: Literal[False] | None = Field(default=None, description=_NO_EFFECT)
    store: Literal[False] | None = Field(default=None, description=_NO_EFFECT)
    seed: int | None = Field(default=None, description="Equal images have equal answers anyway.")
    user: str | None = Field(default=None, description="Not kept.")
    metadata: dict[str, str] | None = Field(default=None, description="Not kept.")


class AnswerMessage(BaseModel):
    """The answer: `content` is the text of a JSON document."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The only choice."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: Literal["stop"] = "stop"
    logprobs: None = None


class ChatCompletion(BaseModel):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Unix time in seconds.")
    model: str
    choices: list[Choice]
    usage: Usage


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}},
        },
    }
}


@router.post("/v1/chat/completions", openapi_extra=BODY, tags=["chat"])
async def create_chat_completion(request: Request) -> ChatCompletion:
    """Detect objects in the images of a chat. The answer is the text of a JSON document.

    An image that cannot be had or decoded is an item with an `error`; if the chat has no other, the
    request fails.
    """
    service = service_of(request)
    asked = parse_body(ChatRequest, await request.body())
    check_model(service, asked.model)
    check_format(asked.response_format)
    images = images_of(asked)
    found = await detect(request, images, asked.threshold)
    return completion(asked, found, usage_of(service, found))


def images_of(asked: ChatRequest) -> list[str]:
    """The addresses of the images of a chat, in their order. Raises ApiError if it has none."""
    found = [
        part.image_url.url
        for message in asked.messages
        for part in (message.content if isinstance(message.content, list) else [])
        if isinstance(part, ImagePart)
    ]
    if not found:
        raise ApiError(
            400,
            'The messages have no image: give {"type": "image_url", "image_url": {"url": ...}}.',
            "missing_image",
            "messages",
        )
    return found


def completion(asked: ChatRequest, found: list[ImageAnswer], usage: Usage) -> ChatCompletion:
    """The answer to a chat. Raises ApiError if its only image failed."""
    if len(found) == 1 and found[0].error is not None:
        error = found[0].error
        raise ApiError(400, f"The image failed: {error.message}", error.code, "messages")
    answer = shaped(ChatAnswer(images=found).model_dump(mode="json"), asked.response_format)
    content = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    return ChatCompletion(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        created=int(time.time()),
        model=asked.model,
        choices=[Choice(message=AnswerMessage(content=content))],
        usage=usage,
    )
