"""Writes grammars in llguidance's dialect of Lark."""

from __future__ import annotations

import json

HEADER = "%llguidance {}\n"


def literal(text: str) -> str:
    """A terminal that matches exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def json_value(schema: str) -> str:
    """A rule body that matches a JSON value. schema: as checked_schema gives it."""
    return f"%json {schema}"


def json_grammar(schema: str) -> str:
    """The whole answer is one JSON value."""
    return f"{HEADER}start: {json_value(schema)}\n"
