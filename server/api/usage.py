"""Token counts as OpenAI writes them."""

from __future__ import annotations

from typing import Any

from server.types import Usage


def usage_body(usage: Usage) -> dict[str, Any]:
    """As in chat completions and completions."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
