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
    styled = {**schema, "x-guidance": STYLE} if isinstance(schema, Mapping) else schema
    text = json.dumps(styled, ensure_ascii=False)
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise InvalidRequestError(
            f"'{param}': the schema is larger than {MAX_SCHEMA_BYTES} bytes.", param=param
        )
    return text


def _depth(value: Any, limit: int) -> int:
    """Levels of nesting, counted up to limit."""
    if limit == 0 or not isinstance(value, Mapping | list):
        return 0
    entries = value.values() if isinstance(value, Mapping) else value
    return 1 + max((_depth(entry, limit - 1) for entry in entries), default=0)
