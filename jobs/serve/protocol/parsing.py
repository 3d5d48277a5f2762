"""Bodies of requests become models.

What is wrong with a body is found at about the cost of reading it, whatever it is.
"""

import reprlib
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from jobs.serve.protocol.counting import has_more_values
from jobs.serve.protocol.errors import ApiError
from pipeline.storage.urls import mask, printable

Model = TypeVar("Model", bound=BaseModel)

# Values of a document. pydantic takes about 10 microseconds for each that is wrong.
MOST_VALUES = 10_000
LONGEST_VALUE = 100  # characters of a wrong value that an error repeats
# Characters of it that are searched for secrets. Of a whole body that would take a minute.
SEARCHED = 20 * LONGEST_VALUE
OTHER_THRESHOLDS = ("score_threshold", "min_score", "confidence", "conf")  # names of other tools
_ABRIDGED = reprlib.Repr()
_ABRIDGED.maxstring = _ABRIDGED.maxother = SEARCHED


def parse_body(kind: type[Model], body: bytes) -> Model:
    """A JSON document as a model. Raises ApiError if it is none, or if the model refuses it."""
    if has_more_values(body, MOST_VALUES):
        raise _too_many_values()
    try:
        document = from_json(body)
    except ValueError as error:
        raise ApiError(400, f"The body is no JSON ({error}).", "invalid_json") from error
    return parse_document(kind, document)


def parse_document(kind: type[Model], document: Any) -> Model:
    """Values of JSON as a model. Raises ApiError if the model refuses them."""
    _check_number_of_values(document)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False)) from error


def _check_number_of_values(document: Any) -> None:
    """Raise ApiError for a document of more than MOST_VALUES values, however they are nested."""
    rest, count = [document], 0
    while rest:
        value = rest.pop()
        parts = [*value.values()] if isinstance(value, dict) else value
        if isinstance(parts, list):
            count += len(parts)
            if count > MOST_VALUES:
                raise _too_many_values()
            rest += parts


def _too_many_values() -> ApiError:
    text = f"The body has more than {MOST_VALUES:,} values: send fewer at a time."
    return ApiError(400, text, "too_many_values")


def invalid_request(errors: Sequence[Any]) -> ApiError:
    """The first error of pydantic as an answer. The others are counted."""
    first = errors[0]
    # Pydantic names the types of a union in the place of an error; they are no part of the request.
    place = [part for part in first["loc"] if part != "body" and not _is_type(part)]
    param = ""
    for part in place:
        param += f"[{part}]" if isinstance(part, int) else f"{'.' if param else ''}{part}"
    param = shown(param)  # a request may have names of any size
    kind = first["type"]
    if kind == "extra_forbidden":
        advice = "its name is `threshold`" if param in OTHER_THRESHOLDS else "leave it out"
        text = f"The parameter `{param}` is unknown or not offered: {advice}"
        code = "unknown_parameter"
    elif kind == "missing":
        text, code = f"The parameter `{param}` is missing", "missing_required_parameter"
    else:
        reason = first["msg"][:1].lower() + first["msg"][1 : 2 * LONGEST_VALUE]
        value = shown(repr_of(first.get("input")))
        subject = f"The parameter `{param}`" if param else "The body"
        text, code = f"{subject} is {value}: {reason}", "invalid_value"
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return ApiError(400, f"{text}{more}.", code, param or None)


def _is_type(part: object) -> bool:
    """Whether a part of an error's place is a type of a union, which pydantic names too."""
    return isinstance(part, str) and (
        part in ("str", "int", "float", "bool") or "[" in part or part[:1].isupper()
    )


def repr_of(value: object) -> str:
    """The value as Python writes it; of many parts the first."""
    return _ABRIDGED.repr(value)


def shown(text: str) -> str:
    """A text of a request for an error or a log: short, without secrets and control characters."""
    found = printable(mask(text[:SEARCHED]))
    return found if len(found) <= LONGEST_VALUE else f"{found[:LONGEST_VALUE]}..."
