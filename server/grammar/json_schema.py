"""JSON Schema -> the grammar library's form, within limits, and the refusals in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from server.errors import InvalidRequestError

MAX_SCHEMA_BYTES = 128 * 1024
MAX_SCHEMA_DEPTH = 64

# One way to space: as json.dumps does it. Free white space lets a small model write blanks for ever.
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def checked_schema(schema: Mapping[str, Any] | bool, param: str) -> str:
    """The schema as JSON text with our spacing. Raises InvalidRequestError (param) if it is over the limits."""
    if isinstance(schema, Mapping) and "x-guidance" in schema:
        raise InvalidRequestError(
            f"'{param}': 'x-guidance' is not a part of JSON Schema.", param=param
        )
    if _depth(schema, MAX_SCHEMA_DEPTH + 1) > MAX_SCHEMA_DEPTH:
        raise InvalidRequestError(
            f"'{param}': the schema is nested deeper than {MAX_SCHEMA_DEPTH} levels.", param=param
        )
    styled: Any = schema
    if isinstance(schema, Mapping):
        # What is combined with other schemas may be meant to leave properties to them.
        closed = schema if _has_key(schema, "allOf") else _closed(schema)
        styled = {**closed, "x-guidance": STYLE}
    text = json.dumps(styled, ensure_ascii=False)
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise InvalidRequestError(
            f"'{param}': the schema is larger than {MAX_SCHEMA_BYTES} bytes.", param=param
        )
    return text


def _closed(schema: Any) -> Any:
    """The schema with objects that say nothing of further properties closed to them.

    Everything it allows the original allows too; a model left free to invent properties does so without end.
    """
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _SCHEMA_MAPS and isinstance(value, Mapping):
            result[key] = {name: _closed(entry) for name, entry in value.items()}
        elif key in _SCHEMA_LISTS and isinstance(value, list):
            result[key] = [_closed(entry) for entry in value]
        else:
            result[key] = _closed(value) if key in _SCHEMAS else value
    properties, required = result.get("properties"), result.get("required", [])
    if (
        isinstance(properties, Mapping)
        and isinstance(required, list)
        and all(name in properties for name in required)
        and not _OPEN.intersection(result)
    ):
        result["additionalProperties"] = False
    return result


_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "prefixItems"})
_SCHEMAS = frozenset({"items", "additionalProperties"})
# Keywords by which an object says what else may be in it, or that leave it to another schema.
_OPEN = frozenset(
    {
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "minProperties",
        "$ref",
        "anyOf",
        "oneOf",
    }
)


def _has_key(value: Any, key: str) -> bool:
    if isinstance(value, Mapping):
        return key in value or any(_has_key(entry, key) for entry in value.values())
    return isinstance(value, list) and any(_has_key(entry, key) for entry in value)


def _depth(value: Any, limit: int) -> int:
    """Levels of nesting, counted up to limit."""
    if limit == 0 or not isinstance(value, Mapping | list):
        return 0
    entries = value.values() if isinstance(value, Mapping) else value
    return 1 + max((_depth(entry, limit - 1) for entry in entries), default=0)
