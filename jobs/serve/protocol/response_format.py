"""`response_format` of chat completions: the answer in the form of the client's own schema.

OpenAI's clients send the JSON schema of a pydantic class. The answer keeps the properties that this
schema has. A schema that asks for what no answer has is refused before anything is computed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from jobs.serve.protocol.answers import Detection, ImageAnswer, ImageError
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import repr_of, shown

DEEPEST = 12  # levels of a schema
# Parts of an answer that may be looked at for each of its images, with those that fit no
# alternative. An image of 100 boxes has 800, and a class of the client may look twice at each.
STEPS = 5000
NO_SCHEMA = (
    "is described by what is no schema, or by one that is too deep or has too many alternatives"
)
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
T = TypeVar("T")
NAMES = frozenset(  # of all properties that an answer can have
    name for kind in (ChatAnswer, ImageAnswer, Detection, ImageError) for name in kind.model_fields
)
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
    fitting = _Fitting(schema, STEPS * len(answer["images"]))
    try:
        return fitting.fit(answer, schema, "answer", DEEPEST)
    except _Misfit as misfit:
        raise misfit.error() from misfit


class _Misfit(Exception):
    """A part of the answer does not fit. Of most alternatives nobody reads why."""

    def __init__(self, place: str, why: str, value: object = None):
        """`why` has the place of the value, {}, which may be of any size."""
        self._place, self._why, self._value = place, why, value

    def error(self) -> ApiError:
        """The error of the request."""
        value = self._value if isinstance(self._value, str) else repr_of(self._value)
        why = self._why.replace("{}", shown(value))
        return ApiError(
            400,
            f"The schema of response_format cannot be met: {self._place} {why}. What an answer has "
            "stands in ChatAnswer of /openapi.json.",
            "invalid_json_schema",
            "response_format",
        )


@dataclass
class _Values:
    """The members of an `enum` or `const`. Those that are no lists or objects are found at once."""

    plain: frozenset[tuple[bool, Any]]
    others: list[Any]

    @classmethod
    def of(cls, members: list[Any]) -> Self:
        others = [one for one in members if isinstance(one, (list, dict))]
        plain = (one for one in members if not isinstance(one, (list, dict)))
        # No answer has larger numbers, and of those many may have the same hash.
        usual = (one for one in plain if not isinstance(one, int) or abs(one) < 1 << 53)
        return cls(frozenset(map(_typed, usual)), others)


def _typed(value: Any) -> tuple[bool, Any]:
    """A value that equals another one only if both are truth values, or none is."""
    return isinstance(value, bool), value


class _Fitting:
    """Gives an answer the properties of a schema, whose keywords are each read once."""

    def __init__(self, root: dict[str, Any], steps: int):
        """`root` is the whole schema; `steps` is how many parts of the answer may be looked at."""
        self._root, self._steps = root, steps
        self._read: dict[tuple[str, int], Any] = {}  # by keyword, and the id of its schema

    def fit(self, value: Any, schema: Any, place: str, depth: int) -> Any:
        """A part of the answer with the properties of `schema`, of at most `depth` levels."""
        self._step()
        if not isinstance(schema, dict) or depth == 0:
            raise _Misfit(place, NO_SCHEMA)
        if "$ref" in schema:
            return self.fit(value, self._referred(schema, place), place, depth - 1)
        every = _keyword(schema, "allOf", list, place)
        if len(every) == 1:
            return self.fit(value, every[0], place, depth - 1)
        for name in ("anyOf", "oneOf"):
            if alternatives := _keyword(schema, name, list, place):
                return self._fit_any(value, alternatives, place, depth)
        kinds = self._once("type", schema, lambda: _kinds(schema.get("type")))
        if kinds is not None and not _is_one_of(value, kinds):
            raise _Misfit(place, "is no {}", schema["type"])
        if "enum" in schema:
            members = _keyword(schema, "enum", list, place)
            if not self._is_one_of(value, members, "enum", schema):
                raise _Misfit(place, "is none of {}", members)
        if "const" in schema and not self._is_one_of(value, [schema["const"]], "const", schema):
            raise _Misfit(place, "is not {}", schema["const"])
        if isinstance(value, list) and isinstance(schema.get("items"), dict):
            return [self.fit(one, schema["items"], f"{place}[]", depth - 1) for one in value]
        if isinstance(value, dict):
            return self._fit_object(value, schema, place, depth)
        return value

    def _step(self, count: int = 1) -> None:
        self._steps -= count
        if self._steps < 0:  # a schema may refer to itself
            raise _TooManySteps("answer", NO_SCHEMA)

    def _once(self, name: str, schema: dict[str, Any], read: Callable[[], T]) -> T:
        """What `read` makes of a keyword, which may be of any size."""
        key = name, id(schema)
        if key not in self._read:
            self._read[key] = read()
        found: T = self._read[key]
        return found

    def _is_one_of(self, value: Any, members: list[Any], name: str, schema: dict[str, Any]) -> bool:
        """Whether a value is one of the members of a keyword."""
        values = self._once(name, schema, lambda: _Values.of(members))
        if not isinstance(value, (list, dict)):
            return _typed(value) in values.plain
        for other in values.others:
            self._step(1 + 10 * len(value))
            if value == other:
                return True
        return False

    def _fit_object(
        self, value: dict[str, Any], schema: dict[str, Any], place: str, depth: int
    ) -> dict[str, Any]:
        required = _keyword(schema, "required", list, place)
        if not self._once("required", schema, lambda: all(isinstance(x, str) for x in required)):
            raise _Misfit(place, NO_SCHEMA)
        names: Iterable[str] = self._once("names", schema, lambda: dict.fromkeys(required))
        for name in names:  # at most those that some answer has, and one
            if name not in value:
                has = ", ".join(value)
                raise _Misfit(place, f"has no `{{}}`: it has {has}", name)
        if "properties" not in schema:
            return value
        properties = _keyword(schema, "properties", dict, place)
        ours = self._once("ours", schema, lambda: [one for one in properties if one in NAMES])
        return {
            name: self.fit(value[name], properties[name], f"{place}.{name}", depth - 1)
            for name in ours
            if name in value
        }

    def _fit_any(self, value: Any, alternatives: list[Any], place: str, depth: int) -> Any:
        for one in alternatives[:-1]:
            try:
                return self.fit(value, one, place, depth - 1)
            except _TooManySteps:
                raise
            except _Misfit:
                pass
        return self.fit(value, alternatives[-1], place, depth - 1)

    def _referred(self, schema: dict[str, Any], place: str) -> Any:
        pointer = schema["$ref"]
        found = self._once("$ref", schema, lambda: self._find(pointer))
        if found is None:
            raise _Misfit(place, "is described by {}, which is not there", pointer)
        return found

    def _find(self, pointer: Any) -> Any:
        found: Any = self._root
        if not isinstance(pointer, str):
            return None
        for part in pointer.removeprefix("#").split("/")[1:]:
            found = found.get(part) if isinstance(found, dict) else None
        return found


class _TooManySteps(_Misfit):
    """No other alternative is tried."""


def _keyword(schema: dict[str, Any], name: str, kind: type, place: str) -> Any:
    """The value of a keyword, which must be of a type; an empty one if there is none."""
    value = schema.get(name, kind())
    if not isinstance(value, kind):
        raise _Misfit(place, NO_SCHEMA)
    return value


def _kinds(wanted: Any) -> tuple[type, ...] | None:
    """The types of Python that a `type` allows; None where it allows all."""
    names = wanted if isinstance(wanted, list) else [wanted]
    if wanted is None or not all(isinstance(name, str) for name in names):
        return None
    return tuple({kind for name in names for kind in JSON_TYPES.get(name, (object,))})


def _is_one_of(value: Any, kinds: tuple[type, ...]) -> bool:
    is_number = not isinstance(value, bool) or bool in kinds or object in kinds
    return isinstance(value, kinds) and is_number
