"""`response_format` of chat completions: the answer in the form of the client's own schema.

OpenAI's clients send the JSON schema of a pydantic class. The answer keeps the properties that this
schema has. A schema that asks for what no answer has is refused before anything is computed.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.serve.protocol.answers import Detection, ImageAnswer
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import shown

DEEPEST = 12  # levels of a schema
TRIES = 1000  # alternatives of a schema that may fail for each image of an answer
NO_SCHEMA = "is described by what is no schema, or by one that is too deep"
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

    Raises ApiError if the schema demands what the answer does not have, or is none.
    """
    schema = wanted.json_schema.wanted if isinstance(wanted, SchemaFormat) else None
    if schema is None:
        return answer
    return _Fitting(schema, TRIES * len(answer["images"])).fit(answer, schema, "answer", DEEPEST)


class _Fitting:
    """Gives an answer the properties of a schema."""

    def __init__(self, root: dict[str, Any], tries: int):
        """`root` is the whole schema, and `tries` the most alternatives that may fail."""
        self._root, self._tries = root, tries

    def fit(self, value: Any, schema: Any, place: str, depth: int) -> Any:
        """A part of the answer with the properties of `schema`, of at most `depth` levels."""
        if not isinstance(schema, dict) or depth == 0:
            raise _misfit(place, NO_SCHEMA)
        if "$ref" in schema:
            return self.fit(value, self._referred(schema["$ref"], place), place, depth - 1)
        every = _keyword(schema, "allOf", list, place)
        if len(every) == 1:
            return self.fit(value, every[0], place, depth - 1)
        for name in ("anyOf", "oneOf"):
            if alternatives := _keyword(schema, name, list, place):
                return self._fit_any(value, alternatives, place, depth)
        if not _is_of_type(value, schema.get("type")):
            raise _misfit(place, f"is no {shown(str(schema['type']))}")
        if "enum" in schema and value not in _keyword(schema, "enum", list, place):
            raise _misfit(place, f"is none of {shown(str(schema['enum']))}")
        if isinstance(value, list) and isinstance(schema.get("items"), dict):
            return [self.fit(one, schema["items"], f"{place}[]", depth - 1) for one in value]
        if isinstance(value, dict):
            return self._fit_object(value, schema, place, depth)
        return value

    def _fit_object(
        self, value: dict[str, Any], schema: dict[str, Any], place: str, depth: int
    ) -> dict[str, Any]:
        for name in _keyword(schema, "required", list, place):
            if not isinstance(name, str):
                raise _misfit(place, NO_SCHEMA)
            if name not in value:
                has = ", ".join(value)
                raise _misfit(place, f"has no `{shown(name)}`: it has {has}")
        if "properties" not in schema:
            return value
        return {
            name: self.fit(value[name], below, f"{place}.{name}", depth - 1)
            for name, below in _keyword(schema, "properties", dict, place).items()
            if name in value
        }

    def _fit_any(self, value: Any, alternatives: list[Any], place: str, depth: int) -> Any:
        for one in alternatives[:-1]:
            try:
                return self.fit(value, one, place, depth - 1)
            except ApiError:
                self._tries -= 1
                if self._tries < 0:  # a schema may refer to itself
                    raise
        return self.fit(value, alternatives[-1], place, depth - 1)

    def _referred(self, pointer: Any, place: str) -> Any:
        found: Any = self._root
        for part in str(pointer).removeprefix("#").split("/")[1:]:
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            raise _misfit(place, f"is described by {shown(str(pointer))}, which is not there")
        return found


def _keyword(schema: dict[str, Any], name: str, kind: type, place: str) -> Any:
    """The value of a keyword, which must be of a type; an empty one if there is none."""
    value = schema.get(name, kind())
    if not isinstance(value, kind):
        raise _misfit(place, NO_SCHEMA)
    return value


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
