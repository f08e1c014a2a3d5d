"""Grammars that make a model's calls valid: right name, right form, arguments that satisfy their schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import StructTag

from server.grammar.lark import HEADER, json_value, literal
from server.tools.formats import END_TAG, TAG, ToolFormat

MAX_FORCED_CALLS = 8


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A function as the grammar needs it. schema: of its arguments, as checked_schema gives it."""

    name: str
    schema: str


def forced_grammar(
    format_: ToolFormat,
    tools: Sequence[CallableTool],
    *,
    at_most: int = MAX_FORCED_CALLS,
    or_json: str | None = None,
) -> str:
    """The answer is one to at_most calls and nothing else; with or_json: or a value of that schema."""
    lines = _call_rules(format_, tools, at_most)
    start = "calls"
    if or_json is not None:
        start = "calls | value"
        lines.append(f"value: {json_value(or_json)}")
    return f"{HEADER}start: {start}\n" + "\n".join(lines) + "\n"


def free_grammar(
    format_: ToolFormat, tools: Sequence[CallableTool], *, at_most: int = MAX_FORCED_CALLS
) -> str:
    """The answer is any text; what begins like a call in it is a valid one."""
    if format_ is ToolFormat.LLAMA:
        # Text begins like no call, so that what begins like one is one.
        lines = [*_call_rules(format_, tools, at_most), "text: /([^\\s{\\[](.|\\n)*)?/"]
        return f"{HEADER}start: calls | text\n" + "\n".join(lines) + "\n"
    if at_most > 1:
        tags = []
        for tool in tools:
            head, tail = _frame(format_, tool)
            tags.append(StructTag(trigger=TAG, begin=head, grammar=tool.schema, end=tail))
        grammar: str = StructTag.to_grammar(tags, assume_special=False)
        return grammar
    lines = ["text: /(.|\\n)*/", f"trigger[lazy]: /(.|\\n)*/ {literal(TAG)}"]
    for index, tool in enumerate(tools):
        head, tail = _frame(format_, tool)
        lines.append(
            f"body_{index}: {literal(head[len(TAG) :])} {json_value(tool.schema)} {literal(tail)}"
        )
    bodies = " | ".join(f"body_{index}" for index in range(len(tools)))
    return f"{HEADER}start: trigger ({bodies}) | text\n" + "\n".join(lines) + "\n"


def _call_rules(format_: ToolFormat, tools: Sequence[CallableTool], at_most: int) -> list[str]:
    separator = literal("\n" if format_ is ToolFormat.HERMES else "; ")
    more = f" ({separator} call){{0,{at_most - 1}}}" if at_most > 1 else ""
    lines = [f"calls: call{more}", "call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
    for index, tool in enumerate(tools):
        head, tail = _frame(format_, tool)
        lines.append(f"call_{index}: {literal(head)} {json_value(tool.schema)} {literal(tail)}")
    return lines


def _frame(format_: ToolFormat, tool: CallableTool) -> tuple[str, str]:
    name = literal(tool.name)
    if format_ is ToolFormat.HERMES:
        return f'{TAG}\n{{"name": {name}, "arguments": ', f"}}\n{END_TAG}"
    return f'{{"name": {name}, "parameters": ', "}"
