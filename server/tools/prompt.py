"""Tools in words, for chat templates that know none.

Where a template renders tools itself, its own words are used. Otherwise the system message gets the description that
Hermes-style models are trained on (function signatures in <tools>, calls in <tool_call>), and calls and results in
the history are written the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from server.types import Message

_INSTRUCTIONS = """\
You may call one or more functions to assist with the user's query. Here are their signatures:
<tools>
{tools}
</tools>

For each function call, write a JSON object with the function's name and arguments within <tool_call> tags:
<tool_call>
{{"name": "FUNCTION", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>"""


def renders_tools(template: str) -> bool:
    """Whether a chat template (Jinja source) has a place for tools."""
    return re.search(r"\btools\b", template) is not None


def renders_results(template: str) -> bool:
    """Whether a chat template (Jinja source) knows calls in the history."""
    return re.search(r"\btool_calls\b", template) is not None


def in_words(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation with tools, calls and results as plain text."""
    told = [_in_words(message) for message in messages]
    if not tools:
        return told
    text = _INSTRUCTIONS.format(tools="\n".join(json.dumps(t, ensure_ascii=False) for t in tools))
    if told and told[0].role == "system":
        told[0] = replace(told[0], content=f"{told[0].content}\n\n{text}".lstrip("\n"))
        return told
    return [Message("system", text), *told]


def _in_words(message: Message) -> Message:
    if message.role == "tool":
        return replace(message, content=f"<tool_response>\n{message.content}\n</tool_response>")
    if not message.tool_calls:
        return message
    calls = "\n".join(
        f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n</tool_call>'
        for call in message.tool_calls
    )
    return replace(message, content=f"{message.content}\n{calls}".lstrip("\n"), tool_calls=())
