"""What an OUTPUT records of its canaries: images with known boxes, and what models gave for them.

A run writes one record, right before its commit, if it has something to add. No record is ever
changed or deleted. For each model, the records of the runs, from the oldest to the newest, make the
reference: one with images replaces all before it, others add the answers of further kinds of
devices.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.output import paths
from jobs.output.documents import convert_document, require, seal, unseal
from jobs.output.store import OutputStore
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.urls import mask


@dataclass(frozen=True)
class Object:
    """An annotated object of a canary."""

    label: str
    box: tuple[float, float, float, float]  # x_min, y_min, x_max, y_max in displayed pixels


@dataclass(frozen=True)
class CanaryImage:
    """An image file and its objects."""

    name: str
    encoded: bytes
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class CanaryReference:
    """The canaries of a model, and what it gave for them first, by what it computed in."""

    source: str  # "rendered", or the URL of the annotations, without secrets
    images: tuple[CanaryImage, ...]
    # By computation (model/computation.py): an answer for each image, as
    # `pipeline.stages.canaries.Answer` writes it, and the run that gave it.
    answers: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)


def read_canary_reference(output: str, fingerprint: str) -> CanaryReference | None:
    """The reference of a model; None if OUTPUT has none. Raises DamagedOutput."""
    store, found = OutputStore(output), None
    with explain_errors("OUTPUT", output):
        names = store.names(paths.CANARIES)
        for name in names:  # in the order of run ids
            model_and_run = paths.model_and_run_of_canaries(name)
            if model_and_run and model_and_run[0] == fingerprint:
                found = _with_record(found, name, store.read(name), model_and_run[1])
    return found


def has_canaries(output: str) -> bool:
    """Whether OUTPUT has canaries, of whatever model."""
    with explain_errors("OUTPUT", output):
        return any(map(paths.model_and_run_of_canaries, OutputStore(output).names(paths.CANARIES)))


def _with_record(
    found: CanaryReference | None, name: str, data: bytes, run_id: str
) -> CanaryReference | None:
    document = unseal(name, data)

    def convert() -> CanaryReference | None:
        answers: dict[str, Any] = document["answers"]
        before = found
        if "images" in document:
            images = tuple(map(_image_of_json, document["images"]))
            before = CanaryReference(str(document["source"]), images)
        if before is None:  # a later record has images: it replaces this one
            return None
        require(all(len(one) == len(before.images) for one in answers.values()))
        runs = {**before.runs, **dict.fromkeys(answers, run_id)}
        return replace(before, answers={**before.answers, **answers}, runs=runs)

    return convert_document(name, convert)


def write_canary_record(
    output: str,
    fingerprint: str,
    run_id: str,
    answers: Mapping[str, list[dict[str, Any]]],
    images: CanaryReference | None,
) -> None:
    """Record the `answers` of a run by computation.

    `images` are the canaries, in a record that is the first or replaces those before it. A record
    that this run wrote before it was killed stays as it is.
    """
    document: dict[str, Any] = {"answers": dict(answers)}
    if images is not None:
        document |= {
            "source": mask(images.source),
            "images": [_json_of_image(image) for image in images.images],
        }
    with explain_errors("OUTPUT", output):
        OutputStore(output).create(paths.canaries(fingerprint, run_id), seal(document))


def _json_of_image(image: CanaryImage) -> dict[str, Any]:
    return {
        "name": image.name,
        "data": base64.b64encode(image.encoded).decode(),
        "objects": [{"label": one.label, "box": list(one.box)} for one in image.objects],
    }


def _image_of_json(document: Mapping[str, Any]) -> CanaryImage:
    objects = []
    for one in document["objects"]:
        x_min, y_min, x_max, y_max = map(float, one["box"])
        objects.append(Object(str(one["label"]), (x_min, y_min, x_max, y_max)))
    data = base64.b64decode(document["data"], validate=True)
    return CanaryImage(str(document["name"]), data, tuple(objects))
