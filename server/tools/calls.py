"""What a text turns out to be: pieces of plain text and of function calls."""

from __future__ import annotations

import ast
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins. index: counts the calls of one answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments (JSON text) of the call with this index."""

    index: int
    text: str


Piece = Text | CallStart | CallArguments


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def calls_in_json(text: str, names: Collection[str]) -> list[tuple[str, str]] | None:
    """(name, arguments as JSON text) of one call or a list of calls; None if the text is no such thing."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    entries = value if isinstance(value, list) else [value]
    calls = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("name") not in names:
            return None
        arguments = entry.get("arguments", entry.get("parameters", {}))
        if isinstance(arguments, str):  # JSON within JSON, as the API itself has it
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, dict):
            return None
        calls.append((str(entry["name"]), json.dumps(arguments, ensure_ascii=False)))
    return calls or None


def calls_in_python(text: str, names: Collection[str]) -> list[tuple[str, str]] | None:
    """The same of `[name(argument=value, …), …]` with literal values."""
    try:
        expression = ast.parse(text.strip(), mode="eval").body
        if not isinstance(expression, ast.List):
            return None
        calls = [_python_call(call) for call in expression.elts]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    if any(name not in names for name, _ in calls):
        return None
    return calls or None


def _python_call(call: ast.expr) -> tuple[str, str]:
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("not a call with named arguments")
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("** has no name")
        arguments[keyword.arg] = _literal(keyword.value)
    return ast.unparse(call.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def _literal(value: ast.expr) -> Any:
    # Models mix the languages' constants.
    constants = {"true": True, "false": False, "null": None}
    if isinstance(value, ast.Name) and value.id in constants:
        return constants[value.id]
    if isinstance(value, ast.List | ast.Tuple):
        return [_literal(entry) for entry in value.elts]
    if isinstance(value, ast.Dict):
        keys = [ast.literal_eval(key) for key in value.keys if key is not None]
        return dict(zip(keys, map(_literal, value.values), strict=True))
    return ast.literal_eval(value)
