"""`response_format` of chat completions: the answer in the form of the client's own schema.

OpenAI's clients send the JSON schema of a pydantic class. The answer keeps the properties that this
schema has. A schema that asks for what no answer has is refused before anything is computed.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.serve.protocol.answers import Detection, ImageAnswer
from jobs.serve.protocol.errors import ApiError

DEEPEST = 12  # levels of a schema
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


class ChatAnswer(BaseModel):
    """The JSON text of a chat completion: one item for each image of the messages, in order."""

    images: list[ImageAnswer]


class JsonSchema(BaseModel):
    """A named schema, as clients send it."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    # A field `schema` would hide a method of pydantic.
    wanted: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class SchemaFormat(BaseModel):
    """`{"type": "json_schema", "json_schema": {...}}`."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["json_schema"]
    json_schema: JsonSchema


class PlainFormat(BaseModel):
    """`{"type": "json_object"}` or `{"type": "text"}`: the published schema."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["json_object", "text"]


ResponseFormat = SchemaFormat | PlainFormat
_BOX = Detection(label="cat", score=0.5, box=(1.5, 2.5, 3.5, 4.5))
_EXAMPLE = ChatAnswer(
    images=[ImageAnswer(index=0, status="ok", width=8, height=6, detections=[_BOX])]
).model_dump(mode="json")


def check_format(wanted: ResponseFormat | None) -> None:
    """Raise ApiError for a schema that no answer can meet."""
    shaped(_EXAMPLE, wanted)


def shaped(answer: dict[str, Any], wanted: ResponseFormat | None) -> Any:
    """The answer with the properties of the wanted schema; as it is without one.

    Raises ApiError if the schema demands what the answer does not have.
    """
    schema = wanted.json_schema.wanted if isinstance(wanted, SchemaFormat) else None
    return answer if schema is None else _fit(answer, schema, schema, "answer", DEEPEST)


def _fit(value: Any, schema: Any, root: dict[str, Any], place: str, depth: int) -> Any:
    if not isinstance(schema, dict) or depth == 0:
        raise _misfit(place, "is described by what is no schema, or by one that is too deep")
    if "$ref" in schema:
        return _fit(value, _referred(root, schema["$ref"], place), root, place, depth - 1)
    if len(schema.get("allOf", [])) == 1:
        return _fit(value, schema["allOf"][0], root, place, depth - 1)
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return _fit_any(value, alternatives, root, place, depth)
    if not _is_of_type(value, schema.get("type")):
        raise _misfit(place, f"is no {schema['type']}")
    if "enum" in schema and value not in schema["enum"]:
        raise _misfit(place, f"is none of {schema['enum']}")
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        items = schema["items"]
        return [_fit(one, items, root, f"{place}[]", depth - 1) for one in value]
    if isinstance(value, dict) and "properties" in schema:
        return _fit_object(value, schema, root, place, depth)
    return value


def _fit_object(
    value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], place: str, depth: int
) -> dict[str, Any]:
    for name in schema.get("required", []):
        if name not in value:
            has = ", ".join(value)
            raise _misfit(place, f"has no `{name}`: it has {has}")
    return {
        name: _fit(value[name], below, root, f"{place}.{name}", depth - 1)
        for name, below in schema["properties"].items()
        if name in value
    }


def _fit_any(
    value: Any, alternatives: list[Any], root: dict[str, Any], place: str, depth: int
) -> Any:
    for one in alternatives[:-1]:
        try:
            return _fit(value, one, root, place, depth - 1)
        except ApiError:
            continue
    return _fit(value, alternatives[-1], root, place, depth - 1)


def _referred(root: dict[str, Any], pointer: Any, place: str) -> Any:
    found: Any = root
    for part in str(pointer).removeprefix("#").split("/")[1:]:
        found = found.get(part) if isinstance(found, dict) else None
    if found is None:
        raise _misfit(place, f"is described by {pointer}, which is not there")
    return found


def _is_of_type(value: Any, wanted: Any) -> bool:
    names = wanted if isinstance(wanted, list) else [wanted]
    if wanted is None or not all(isinstance(name, str) for name in names):
        return True
    kinds = {kind for name in names for kind in JSON_TYPES.get(name, (object,))}
    is_number = not isinstance(value, bool) or bool in kinds or object in kinds
    return isinstance(value, tuple(kinds)) and is_number


def _misfit(place: str, why: str) -> ApiError:
    return ApiError(
        400,
        f"The schema of response_format cannot be met: {place} {why}. What an answer has stands in "
        "ChatAnswer of /openapi.json.",
        "invalid_json_schema",
        "response_format",
    )
