"""What is told of one HTTP request when it has ended: to the log, to a trace, to the metrics.

The routes fill it in as they learn things; it knows neither of those who read it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import Scope

from server.api.caller import STATE, Caller
from server.api.run import Run
from server.types import Usage

RECORD = "lorachat.record"
# The routes that give answers, in the words of OpenTelemetry's gen_ai.operation.name.
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
}
# What may stand in a model's name; anything else that was asked for is not repeated anywhere.
_MODEL_NAME = re.compile(r"[A-Za-z0-9._@/:+-]{1,128}")
_AGENT = re.compile(r"[\x20-\x7e]{1,200}")


@dataclass(slots=True)
class RequestRecord:
    """begun: time.perf_counter(). begun_ns: the same moment, in nanoseconds since 1970. status: 0 before there is one.

    error: the code of the error body. runs: one per prompt, empty where nothing was computed.
    """

    scope: Scope
    begun: float = field(default_factory=time.perf_counter)
    begun_ns: int = field(default_factory=time.time_ns)
    ended: float = 0.0
    status: int = 0
    request_id: str = ""
    error: str | None = None
    asked_model: str | None = None
    is_stream: bool = False
    runs: Sequence[Run] = ()

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def path(self) -> str:
        """The route's own path; that of a request which reached no route may be anything its caller likes."""
        route = getattr(self.scope.get("route"), "path", None)
        return str(route or self.scope["path"])

    @property
    def operation(self) -> str | None:
        """None for requests that ask for no answer."""
        return OPERATIONS.get(self.path) if self.method == "POST" else None

    @property
    def key(self) -> str:
        """The name of the API key; empty where none is asked for, or none was valid."""
        caller = self.scope.get(STATE)
        return caller.key_name if isinstance(caller, Caller) else ""

    @property
    def is_admitted(self) -> bool:
        """Whether it got past the door."""
        return STATE in self.scope

    @property
    def user_agent(self) -> str | None:
        given = Headers(scope=self.scope).get("user-agent", "")[:200]
        return given if _AGENT.fullmatch(given) else None

    @property
    def asked(self) -> str | None:
        """The model that was asked for, if that looks like a name."""
        asked = self.asked_model or ""
        return asked if _MODEL_NAME.fullmatch(asked) else None

    @property
    def model(self) -> str | None:
        """The version that answered, else what was asked for."""
        return self.runs[0].model if self.runs else self.asked

    @property
    def outcome(self) -> str:
        """finished, cancelled or failed of what was computed; ok, refused, cancelled or failed of the rest."""
        outcomes = {run.outcome for run in self.runs}
        for outcome in ("failed", "cancelled", "finished"):
            if outcome in outcomes:
                return outcome
        if self.status == 499:
            return "cancelled"
        if self.status in (0, 500):
            return "failed"
        return "ok" if self.status < 400 else "refused"

    @property
    def usage(self) -> Usage:
        usages = [run.usage for run in self.runs]
        return Usage(
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
            sum(usage.cached_tokens for usage in usages),
        )

    @property
    def finish_reasons(self) -> list[str]:
        """Of every choice that ended, in order."""
        return [reason for run in self.runs for _, reason in sorted(run.reasons.items())]

    @property
    def queue_seconds(self) -> float | None:
        """From acceptance to the first step, of the prompt that waited longest; None if none was begun."""
        waits = [
            run.generation.begun - run.clock.submitted
            for run in self.runs
            if run.generation.begun is not None
        ]
        return max(waits, default=None)

    @property
    def first_token_seconds(self) -> float | None:
        first = [run.clock.first_token for run in self.runs if run.clock.first_token is not None]
        return min(first) - self.begun if first else None

    @property
    def total_seconds(self) -> float:
        return self.ended - self.begun


def record_of(request: Request) -> RequestRecord:
    """The request's record; one that nobody reads where the app is used without the observer."""
    record = request.scope.get(RECORD)
    return record if isinstance(record, RequestRecord) else RequestRecord(request.scope)
