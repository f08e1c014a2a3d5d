"""The stream of one answer to the page: one JSON object a line.

    {"text": "what is new", "settled": "<p>…", "tail": "<p>…", "note": ["…"]}    any number of these
    {"text": "…", "html": "<p>…", "note": ["…"], "end": {…}}                     exactly one, the last

`settled` is to be appended for good, `tail` replaces the one before it: blocks that no later text can
change are drawn once. `html` is the whole answer.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from client.answers import Answer, watch
from client.api import ChatClient
from client.blocks import complete_blocks
from client.errors import ChatError
from client.types import ChatRequest
from client.ui.markdown import to_html


async def answer_lines(client: ChatClient, request: ChatRequest) -> AsyncGenerator[str]:
    """Ask, and give the lines as the answer is written."""
    sent = settled = 0
    async with aclosing(watch(client, request)) as answers:
        async for answer in answers:
            line: dict[str, Any] = {"text": answer.text[sent:], "note": answer.note}
            sent = len(answer.text)
            if answer.has_ended:
                line |= {"html": to_html(answer.text), "end": _end(answer)}
            else:
                end = settled + complete_blocks(answer.text[settled:])
                line |= {
                    "settled": to_html(answer.text[settled:end]),
                    "tail": to_html(answer.text[end:]),
                }
                settled = end
            yield json.dumps(line, ensure_ascii=False) + "\n"


def failed_line(error: ChatError) -> str:
    """The one line of an answer that could not even be asked for."""
    line = {"text": "", "html": "", "note": [], "end": _end(Answer("", error=error))}
    return json.dumps(line, ensure_ascii=False) + "\n"


def _end(answer: Answer) -> dict[str, Any]:
    if answer.error is not None:
        error = answer.error
        return {
            "error": {
                "kind": error.kind.value,
                "sentence": error.sentence,
                "next_step": error.next_step,
                "retry_after_seconds": error.retry_after_seconds,
            }
        }
    done = answer.done
    assert done is not None
    return {
        "model": done.model,
        "finish_reason": done.finish_reason,
        "prompt_tokens": done.usage and done.usage.prompt_tokens,
        "completion_tokens": done.usage and done.usage.completion_tokens,
        "cached_tokens": done.usage and done.usage.cached_tokens,
        "first_token_seconds": done.timings.first_token_seconds,
        "tokens_per_second": done.timings.tokens_per_second,
    }
