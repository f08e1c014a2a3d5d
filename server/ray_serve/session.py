"""What a request has in common with those it should share an engine with: its key, model, and conversation's beginning.

An engine's prefix cache is apart by API key and adapter, and holds a conversation from its first token. So the turns of
one conversation, and requests that begin with the same text, belong on the same engine. Does not know the engines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SESSION_HEADER = "x-session-id"  # Ray Serve's own name for it
# Of a prompt without turns: long enough to tell documents apart, short enough to keep questions on one together.
PROMPT_CHARACTERS = 1024
PROMPT_TOKENS = 256


def session_of(headers: Mapping[str, str], key_id: str, body: bytes) -> str | None:
    """The same text for requests that should meet; None where nothing says so, and any engine will do.

    First what the caller says (the header, or OpenAI's `prompt_cache_key`), else what the conversation begins with: all
    up to its first user message. key_id: names the API key.
    """
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        fields = {}
    named = headers.get(SESSION_HEADER) or fields.get("prompt_cache_key")
    beginning = named if isinstance(named, str) else _beginning(fields)
    if beginning is None:
        return None
    told = json.dumps([key_id, fields.get("model"), fields.get("cache_salt"), beginning])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _beginning(fields: Mapping[str, Any]) -> Any:
    messages = fields.get("messages", fields.get("input"))
    if isinstance(messages, list):
        return [fields.get("instructions"), fields.get("tools"), _until_first_question(messages)]
    if isinstance(messages, str):
        return [fields.get("instructions"), fields.get("tools"), messages]
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        return prompt[:PROMPT_CHARACTERS]
    if isinstance(prompt, list):
        return prompt[:PROMPT_TOKENS]
    return None


def _until_first_question(messages: list[Any]) -> list[Any]:
    for number, message in enumerate(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            # As text and as one text part it is the same question.
            return [*messages[:number], message.get("content")]
    return messages
