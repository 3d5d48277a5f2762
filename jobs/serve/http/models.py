"""`GET /v1/models`: the one model of this server, with the names of its classes."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from jobs.serve.http.detecting import Service, check_model, service_of

router = APIRouter(tags=["models"])


class Model(BaseModel):
    """The model that a server has."""

    id: str = Field(description="The name that requests give.")
    object: Literal["model"] = "model"
    created: int = Field(description="When the server was started; Unix time in seconds.")
    owned_by: Literal["detr-batch"] = "detr-batch"
    labels: list[str] = Field(description="The names of its classes.")


class Models(BaseModel):
    """The answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/v1/models")
async def list_models(request: Request) -> Models:
    """List the model of this server."""
    return Models(data=[_model(service_of(request))])


@router.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> Model:
    """The model of this server, by its name."""
    service = service_of(request)
    check_model(service, model)
    return _model(service)


def _model(service: Service) -> Model:
    labels = [label for label in service.engine.labels if label]
    return Model(id=service.engine.model, created=service.started, labels=labels)
