"""One line of log per request: who, which model, how many tokens, how long, which end. No text of it, unless asked."""

from __future__ import annotations

import logging
from typing import Any

from server.api.record import RequestRecord

log = logging.getLogger("lorachat.request")

# Asked every few seconds, for ever, by machines.
PROBES = frozenset({"/health", "/ready", "/metrics"})
# Of a text in the log, where texts are asked for.
MAX_TEXT = 65536


class RequestLog:
    """with_content: prompts and answers too."""

    def __init__(self, *, with_content: bool = False) -> None:
        self._with_content = with_content

    def __call__(self, record: RequestRecord) -> None:
        level = logging.DEBUG if record.path in PROBES else logging.INFO
        if not log.isEnabledFor(level):
            return
        fields = self._fields(record)
        log.log(
            level,
            "%s %s %d",
            record.method,
            record.path[:200],
            record.status,
            extra={"fields": fields},
        )

    def _fields(self, record: RequestRecord) -> dict[str, Any]:
        """Only what there is: a request that was refused has no tokens."""
        fields: dict[str, Any] = {
            "request_id": record.request_id or None,
            "key": record.key or None,
            "model": record.model,
            "outcome": record.outcome,
            "status": record.status,
            "error": record.error,
            "user_agent": record.user_agent,
        }
        if record.runs:
            usage = record.usage
            fields |= {
                "response_id": record.runs[0].id,
                "stream": record.is_stream,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "finish_reason": ",".join(record.finish_reasons) or None,
                "queue_seconds": _rounded(record.queue_seconds),
                "first_token_seconds": _rounded(record.first_token_seconds),
            }
        fields["seconds"] = _rounded(record.total_seconds)
        if self._with_content and record.runs:
            tokenizer = record.runs[0].request.model.tokenizer
            prompts = [tokenizer.decode(run.request.prompt_ids) for run in record.runs]
            fields["prompts"] = [prompt[:MAX_TEXT] for prompt in prompts]
            fields["answers"] = [text[:MAX_TEXT] for run in record.runs for text in run.answers]
        return {name: value for name, value in fields.items() if value is not None}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
