"""What a chat request says about the form of its answer: tools, and a schema. -> a grammar, and how to read calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.api.schemas.chat import (
    ChatRequest,
    FunctionTool,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    Tool,
)
from server.errors import InvalidRequestError
from server.grammar.json_schema import checked_schema
from server.grammar.lark import json_grammar
from server.tools.forcing import MAX_FORCED_CALLS, CallableTool, forced_grammar, free_grammar
from server.tools.formats import format_of
from server.tools.parser import CallParser

NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Structure:
    """tools: what the template renders. grammar, param: what the answer must satisfy, and the field that says so.

    new_parser: finds calls in one choice's text; None where no call can be.
    """

    tools: tuple[dict[str, Any], ...] = ()
    grammar: str | None = None
    param: str = "response_format"
    new_parser: Callable[[], CallParser] | None = None


def structure_of(chat: ChatRequest, template: str | None) -> Structure:
    """Raises InvalidRequestError for schemas and choices that cannot be followed."""
    schema = _response_schema(chat)
    tools, choice = chat.tools or [], chat.tool_choice
    names = _names(tools)
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise InvalidRequestError(
            f"'tool_choice': there is no function {choice.function.name[:80]!r} among 'tools'.",
            param="tool_choice",
        )
    if choice == "required" and not tools:
        raise InvalidRequestError(
            "'tool_choice' is 'required', but 'tools' has none.", param="tool_choice"
        )
    rendered = tuple(tool.model_dump(exclude_none=True) for tool in tools)
    if not tools or choice == "none":
        grammar = None if schema is None else json_grammar(schema)
        return Structure(rendered, grammar)
    format_ = format_of(template)
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        names = [choice.function.name]
    single = chat.parallel_tool_calls is False or isinstance(choice, NamedTool)
    at_most = 1 if single else MAX_FORCED_CALLS
    is_forced = choice == "required" or isinstance(choice, NamedTool)
    grammar = None
    if is_forced or schema is not None:
        callable_ = [_callable(tool.function, index) for index, tool in enumerate(tools)]
        grammar = forced_grammar(
            format_, callable_, at_most=at_most, or_json=None if is_forced else schema
        )
    elif single or any(tool.function.strict for tool in tools):
        callable_ = [
            _callable(tool.function, index, loose=not tool.function.strict)
            for index, tool in enumerate(tools)
        ]
        grammar = free_grammar(format_, callable_, at_most=at_most)
    known = frozenset(names)
    return Structure(rendered, grammar, "tools", lambda: CallParser(format_, known))


def _names(tools: list[Tool]) -> list[str]:
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequestError(
                f"'tools.{index}.function.name': {name!r} is the name of an earlier function too.",
                param=f"tools.{index}.function.name",
            )
    return names


def _callable(function: FunctionTool, index: int, *, loose: bool = False) -> CallableTool:
    """loose: any object will do for the arguments."""
    schema = NO_PARAMETERS if function.parameters is None else function.parameters
    if loose:
        schema = {"type": "object"}
    schema = {"type": "object", **schema}
    return CallableTool(function.name, checked_schema(schema, f"tools.{index}.function.parameters"))


def _response_schema(chat: ChatRequest) -> str | None:
    wanted = chat.response_format
    if isinstance(wanted, JsonObjectFormat):
        return checked_schema({"type": "object"}, "response_format")
    if isinstance(wanted, JsonSchemaFormat):
        param = "response_format.json_schema.schema"
        if wanted.json_schema.schema_ is None:
            raise InvalidRequestError(f"'{param}' is required.", param=param)
        return checked_schema(wanted.json_schema.schema_, param)
    return None
