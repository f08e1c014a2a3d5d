"""Log-probabilities as OpenAI writes them: token text and bytes with each number."""

from __future__ import annotations

import json
from typing import Any

from server.types import (
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Tokenizer,
    TokenLogprob,
)

# What JSON can say of a probability of zero; OpenAI's own floor.
FLOOR = -9999.0


class LogprobWriter:
    """One model's tokens in words. Kept per answer: the tokens of a text repeat."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._words: dict[int, tuple[str, list[int]]] = {}

    def word(self, token_id: int) -> tuple[str, list[int]]:
        """The token's text and bytes. A part of a character is written `bytes:\\xe2\\x80`, as OpenAI does it."""
        known = self._words.get(token_id)
        if known is None:
            data = self._tokenizer.token_bytes(token_id)
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
            known = self._words[token_id] = (text, list(data))
        return known

    def entry(self, logprob: TokenLogprob, num_top: int) -> dict[str, Any]:
        """An entry of `logprobs.content`."""
        return {
            **self._pair(logprob.token_id, logprob.logprob),
            "top_logprobs": [self._pair(i, value) for i, value in logprob.top[:num_top]],
        }

    def _pair(self, token_id: int, value: float) -> dict[str, Any]:
        text, data = self.word(token_id)
        return {"token": text, "logprob": max(value, FLOOR), "bytes": data}


def dump(entries: list[dict[str, Any]]) -> str:
    """The entries as JSON text."""
    return json.dumps(entries, ensure_ascii=False, separators=(",", ":"))


def shown_logprobs(request: GenerationRequest, event: Delta | Finished) -> tuple[TokenLogprob, ...]:
    """The event's log-probabilities without that of the token that ended the answer: it is no part of it."""
    logprobs = event.logprobs
    if not (isinstance(event, Finished) and event.reason is FinishReason.STOP and logprobs):
        return logprobs
    ends = request.model.stop_token_ids | set(request.params.stop_token_ids)
    is_end = logprobs[-1].token_id in ends and not isinstance(event.stop, str)
    return logprobs[:-1] if is_end else logprobs
