"""What the endpoint answers about images, for `/v1/detections`, chat completions and batches."""

from typing import Literal

from pydantic import BaseModel, Field

PATHS = ("/v1/detections", "/v1/chat/completions")  # to which images are posted
Box = tuple[float, float, float, float]


class Detection(BaseModel):
    """One object in an image."""

    label: str = Field(description="The class name.")
    score: float = Field(description="From the threshold to 1.")
    box: Box = Field(description="x_min, y_min, x_max, y_max in pixels of the upright image.")


class ImageError(BaseModel):
    """Why an image has no detections."""

    code: str = Field(description="A constant for programs, such as `undecodable`.")
    message: str = Field(description="The reason, for people.")


class ImageAnswer(BaseModel):
    """The detections of one image, or why there are none."""

    index: int = Field(description="The position of the image in the request, from 0.")
    status: Literal["ok", "failed"]
    width: int | None = Field(default=None, description="Pixels of the upright image.")
    height: int | None = Field(default=None, description="Pixels of the upright image.")
    detections: list[Detection] = Field(default=[], description="Best first.")
    error: ImageError | None = None


class Usage(BaseModel):
    """What a request used. Tokens are 0: clients expect the fields."""

    images: int = Field(description="Images that were detected in.")
    cost_usd: float | None = Field(
        default=None, description="At the price that the server was started with."
    )
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Detections(BaseModel):
    """The answer of `POST /v1/detections`."""

    id: str
    object: Literal["detections"] = "detections"
    created: int = Field(description="Unix time in seconds.")
    model: str
    data: list[ImageAnswer] = Field(description="One for each image, in their order.")
    usage: Usage
