"""Bytes -> a checked request, or one error that names the field. Knows no endpoint's fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from server.errors import InvalidRequestError, UnsupportedParameterError

Request = TypeVar("Request", bound=BaseModel)

# Known field -> the values of it that ask for nothing.
NotHonoured = Mapping[str, tuple[Any, ...]]

# What to do instead.
HINTS = {
    "conversation": "Nothing is stored here: send the whole conversation as 'input'.",
    "guided_json": "Its place is 'response_format'.",
    "json_schema": "Its place is 'response_format'.",
    "previous_response_id": "Nothing is stored here: send the whole conversation as 'input'.",
    "repeat_penalty": "Its name here is 'repetition_penalty'.",
    "store": "Nothing is stored here.",
    "structured_outputs": "Its place is 'response_format'.",
}


def parse(kind: type[Request], body: bytes, not_honoured: NotHonoured) -> Request:
    """Raises InvalidRequestError for anything this server cannot do exactly as asked.

    A field of null is a field left out.
    """
    return validate(kind, _json_object(body), not_honoured)


def validate(kind: type[Request], fields: dict[str, Any], not_honoured: NotHonoured) -> Request:
    """The same for a body that is JSON already."""
    for name in not_honoured.keys() & fields.keys():
        if not _asks_for_nothing(not_honoured[name], fields.pop(name)):
            raise UnsupportedParameterError(name, HINTS.get(name, ""))
    fields = {name: value for name, value in fields.items() if value is not None}
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _field_error(error, fields) from None


def unknown_fields(request: BaseModel, path: str = "") -> Iterator[str]:
    """Names of the fields that the request holds and this server does not know, without positions in lists."""
    yield from (f"{path}{name}" for name in request.model_extra or ())
    for name in request.model_fields_set:
        value = getattr(request, name, None)
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, BaseModel):
                yield from unknown_fields(entry, f"{path}{name}.")


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        # This parser bounds depth, and its messages give the position.
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"The body is not JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise InvalidRequestError("The body is not a JSON object.")
    return fields


def _asks_for_nothing(harmless: tuple[Any, ...], value: object) -> bool:
    # 0.0 asks for as little as 0 does; False is not 0, though Python says so.
    return value is None or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless
    )


def _field_error(error: ValidationError, fields: dict[str, Any]) -> InvalidRequestError:
    details = error.errors(include_url=False)
    # A union reports one entry per member. Those of the wrong type say least; the deepest says most.
    detail = max(details, key=_telling)
    name = ".".join(_path(detail["loc"], fields))
    if detail["type"] == "missing":
        return InvalidRequestError(f"'{name}' is required.", param=name)
    given = detail["input"]
    shown = f" (got {given!r})" if isinstance(given, int | float | bool) else ""
    if isinstance(given, str) and len(given) <= 40:
        shown = f" (got {given!r})"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return InvalidRequestError(f"'{name}': {message}{shown}.", param=name)


def _telling(detail: ErrorDetails) -> tuple[bool, int, bool]:
    """How much an entry says: of two of one depth, the wrong kind explains the missing field."""
    kind = detail["type"]
    return kind not in _WRONG_MEMBER, len(detail["loc"]), kind == "literal_error"


def _path(location: tuple[int | str, ...], fields: dict[str, Any]) -> Iterator[str]:
    """The parts of a location that are in the body: it also names members of unions, which are not."""
    value: Any = fields
    for position, part in enumerate(location):
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            if position < len(location) - 1 or not isinstance(value, dict):
                continue  # else: a field that is missing
        yield str(part)


_WRONG_MEMBER = frozenset(
    {"string_type", "list_type", "model_type", "model_attributes_type", "int_type"}
)
