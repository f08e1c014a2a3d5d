"""Schemas for the tests of structured output, and an independent check of values against them.

The check is written for these schemas' keywords alone, so that it shares nothing with the grammar library.
"""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "is_member": {"type": "boolean"},
        },
        "required": ["name", "age", "is_member"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {"sku": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}},
                    "required": ["sku"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["items"],
        "additionalProperties": False,
    },
    "choice": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": -5, "maximum": 5}]},
    "enum": {"enum": ["a", 1, None, True, "é"]},
    "const": {"const": {"a": [1, "x"]}},
    "reference": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": False,
    },
}


@st.composite
def schemas(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    """Random schemas whose values are short."""
    kinds = ["string", "integer", "boolean", "null", "enum"]
    if depth:
        kinds += ["array", "object", "anyOf"]
    match draw(st.sampled_from(kinds)):
        case "string":
            low = draw(st.integers(0, 3))
            return {"type": "string", "minLength": low, "maxLength": low + draw(st.integers(0, 4))}
        case "integer":
            low = draw(st.integers(-200, 200))
            return {"type": "integer", "minimum": low, "maximum": low + draw(st.integers(0, 300))}
        case "enum":
            values = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=4)
            return {"enum": draw(st.lists(values, min_size=1, max_size=4))}
        case "array":
            low = draw(st.integers(0, 2))
            return {
                "type": "array",
                "items": draw(schemas(depth - 1)),
                "minItems": low,
                "maxItems": low + draw(st.integers(0, 2)),
            }
        case "object":
            names = draw(
                st.lists(st.text('abcé "\\', min_size=1, max_size=4), unique=True, max_size=3)
            )
            required = [name for name in names if draw(st.booleans())]
            return {
                "type": "object",
                "properties": {name: draw(schemas(depth - 1)) for name in names},
                "required": required,
                "additionalProperties": False,
            }
        case "anyOf":
            return {"anyOf": draw(st.lists(schemas(depth - 1), min_size=1, max_size=3))}
        case kind:
            return {"type": kind}


def satisfies(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None) -> bool:
    root = root or schema
    if "$ref" in schema:
        return satisfies(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(satisfies(value, option, root) for option in schema["anyOf"])
    if "enum" in schema:
        return any(value == v and type(value) is type(v) for v in schema["enum"])
    if "const" in schema:
        return bool(value == schema["const"])
    match schema.get("type"):
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return type(value) is int and schema.get("minimum", value) <= value <= schema.get(
                "maximum", value
            )
        case "string":
            length = isinstance(value, str) and len(value)
            return (
                isinstance(value, str)
                and schema.get("minLength", 0) <= length <= schema.get("maxLength", length)
                and re.search(schema.get("pattern", ""), value) is not None
            )
        case "array":
            return (
                isinstance(value, list)
                and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
                and all(satisfies(entry, schema["items"], root) for entry in value)
            )
        case "object":
            properties = schema.get("properties", {})
            return (
                isinstance(value, dict)
                and set(schema.get("required", ())) <= value.keys() <= properties.keys()
                and all(satisfies(entry, properties[name], root) for name, entry in value.items())
            )
    raise AssertionError(f"a schema this check does not know: {schema}")
