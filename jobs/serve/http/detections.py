"""`POST /v1/detections`: images in, boxes out. The plainest route."""

import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.datastructures import FormData, UploadFile

from jobs.serve.http.detecting import check_model, detect, service_of, usage_of
from jobs.serve.http.forms import FORM, is_form, read_form
from jobs.serve.protocol.answers import Detections
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import parse_body, parse_document

router = APIRouter()
Address = Annotated[str, StringConstraints(min_length=1)]
IN_MEMORY = 1 << 20  # bytes of a file of a form; bodies are counted, wherever they are
Threshold = Annotated[float, Field(ge=0, le=1)]


class DetectionsRequest(BaseModel):
    """The images to detect in."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="The name in `/v1/models`.")
    images: list[Address] = Field(
        min_length=1,
        description="Addresses: `data:image/jpeg;base64,...`, `https://...`, or in a bucket that "
        "the server may read.",
    )
    threshold: Threshold | None = Field(
        default=None, description="The least score of a detection; 0 keeps the best 100."
    )


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/DetectionsRequest"}},
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "model": {"type": "string"},
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        },
                        "threshold": {"type": "number", "minimum": 0, "maximum": 1},
                    },
                    "required": ["model", "images"],
                }
            },
        },
    }
}


@router.post("/v1/detections", openapi_extra=BODY, tags=["detections"])
async def create_detections(request: Request) -> Detections:
    """Detect objects in images, given by their addresses in JSON, or as files in a form.

    An image that cannot be had or decoded is an item with an `error`, and costs no other image.
    """
    service = service_of(request)
    images: list[str | bytes]
    if is_form(request):
        most = service.settings.max_images
        form = await read_form(request, most, most, IN_MEMORY)
        try:
            asked = _parsed_form(form)
            images = [await file.read() for file in _files(form)]
        finally:
            await form.close()
    else:
        asked = parse_body(DetectionsRequest, await request.body())
        images = [*asked.images]
    check_model(service, asked.model)
    found = await detect(request, images, asked.threshold)
    return Detections(
        id=f"det_{secrets.token_hex(12)}",
        created=int(time.time()),
        model=asked.model,
        data=found,
        usage=usage_of(service, found),
    )


def _files(form: FormData) -> list[UploadFile]:
    """The files of a form: `images` or `images[]`, which some clients write."""
    found = [value for name, value in form.multi_items() if name in ("images", "images[]")]
    files = [value for value in found if isinstance(value, UploadFile)]
    if not files or len(files) < len(found):
        text = "The parameter `images` must be files, as curl sends them by -F images=@photo.jpg."
        raise ApiError(400, text, "invalid_value", "images")
    return files


def _parsed_form(form: FormData) -> DetectionsRequest:
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    named = ["of the form" for _ in _files(form)]
    return parse_document(DetectionsRequest, {**fields, "images": named})
