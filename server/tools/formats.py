"""How models write function calls, and which way a chat template teaches.

HERMES (also Qwen and most ChatML models): `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, anywhere in a text.
LLAMA (3.1 and later): the whole answer is `{"name": …, "parameters": {…}}`, several separated by `;`, or the pythonic
`[name(argument=value), …]`.
"""

from __future__ import annotations

from enum import StrEnum

TAG, END_TAG = "<tool_call>", "</tool_call>"


class ToolFormat(StrEnum):
    HERMES = "hermes"
    LLAMA = "llama"


def format_of(template: str | None) -> ToolFormat:
    """The format that a chat template (Jinja source) asks its model for."""
    if (
        template
        and TAG not in template
        and ("python_tag" in template or '"parameters"' in template)
    ):
        return ToolFormat.LLAMA
    return ToolFormat.HERMES
