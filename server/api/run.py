"""One request on its way through the engine, with all that the API counts and times about it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from server.adapter_types import AdapterLease
from server.api.due import missed
from server.api.quota import Quota
from server.api.service import Service
from server.engine.generation import Generation
from server.errors import InvalidRequestError
from server.grammar.constraint import GrammarConstraint
from server.types import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    ServedModel,
    Usage,
)
from server.version import VERSION


@dataclass(slots=True)
class Clock:
    """Moments of one request, as time.perf_counter() gives them."""

    begun: float
    submitted: float = 0.0
    first_token: float | None = None
    last_token: float | None = None
    last_of_choice: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """A generation and what is known of it so far. Taking an event observes it.

    id: `chatcmpl-…` or the like. created: Unix seconds. constraints: made by the engine, one per choice. lease: of the
    adapter's weights. quota: what the answer's tokens are charged to. deadline: in the event loop's time; then the run
    fails. messages: the conversation, where it is one. reasons, tokens_of_choice: by choice, of those that ended or
    began.
    """

    service: Service
    generation: Generation
    request: GenerationRequest
    clock: Clock
    constraints: list[GrammarConstraint] = field(default_factory=list)
    lease: AdapterLease | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    completion_tokens: int = 0
    cached_tokens: int = 0
    has_failed: bool = False
    quota: Quota | None = None
    deadline: float | None = None
    messages: Sequence[Message] = ()
    reasons: dict[int, str] = field(default_factory=dict)
    tokens_of_choice: dict[int, int] = field(default_factory=dict)
    _texts: dict[int, list[str]] = field(default_factory=dict)
    _is_closed: bool = False

    @property
    def runs(self) -> Sequence[Run]:
        return (self,)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def model(self) -> str:
        return self.request.model.id

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.service.catalogue.fingerprint, self.request.model)

    @property
    def usage(self) -> Usage:
        """So far; completion tokens are counted as they come."""
        return Usage(len(self.request.prompt_ids), self.completion_tokens, self.cached_tokens)

    @property
    def outcome(self) -> str:
        """finished, failed, or cancelled: the caller left, or has not read the end yet."""
        if self.has_failed:
            return "failed"
        return "finished" if self.generation.is_finished else "cancelled"

    @property
    def phase(self) -> str:
        """How far it came: queue, prompt or decode."""
        if self.generation.begun is None:
            return "queue"
        return "prompt" if self.clock.first_token is None else "decode"

    @property
    def answers(self) -> list[str]:
        """The text of each choice so far; empty unless the service keeps content."""
        return ["".join(parts) for _, parts in sorted(self._texts.items())]

    async def next_event(self) -> Event | None:
        """The next event; None after the last. Cancelling it loses nothing."""
        if self.has_failed or self.generation.is_finished:
            return None
        return self._observe(await self._in_time())

    async def _in_time(self) -> Event:
        if self.deadline is None:
            return await self.generation.next_event()
        try:
            # Asked for first: events that lie ready are taken without waiting, and so without a timeout.
            if asyncio.get_running_loop().time() < self.deadline:
                async with asyncio.timeout_at(self.deadline):
                    return await self.generation.next_event()
        except TimeoutError:
            pass
        self.generation.cancel()  # nothing of it is computed any further
        return Failed(missed())

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self.next_event()) is not None:
            yield event

    def _observe(self, event: Event) -> Event:
        if isinstance(event, Delta | Finished):
            self._count(event.index, len(event.token_ids))
            if self.service.keeps_content:
                self._texts.setdefault(event.index, []).append(event.text)
        if isinstance(event, Finished):
            self.reasons[event.index] = event.reason.value
            self.cached_tokens = max(self.cached_tokens, event.cached_tokens)
            self.service.metrics.finished(event)
            failed = next((c for c in self.constraints if c.failure is not None), None)
            if failed is not None:
                # The caller's to mend: told that it is ours, OpenAI's clients would ask twice more.
                event = Failed(
                    InvalidRequestError(
                        f"'{failed.param}' became too complex to follow while the answer was written. Simplify it.",
                        param=failed.param,
                    )
                )
        if isinstance(event, Failed):
            self.has_failed = True
        return event

    def _count(self, index: int, num_tokens: int) -> None:
        if num_tokens == 0:
            return
        now = time.perf_counter()
        clock = self.clock
        if clock.first_token is None:
            clock.first_token = now
        before = clock.last_of_choice.get(index)
        if before is not None:
            self.service.metrics.inter_token.observe(now - before)
        clock.last_of_choice[index] = clock.last_token = now
        self.completion_tokens += num_tokens
        if self.quota is not None:
            self.quota.spend_tokens(num_tokens)
        self.tokens_of_choice[index] = self.tokens_of_choice.get(index, 0) + num_tokens

    def close(self) -> None:
        """Stop computing and count. Safe any number of times; the first one counts."""
        self.generation.cancel()
        if self._is_closed:
            return
        self._is_closed = True
        if self.lease is not None:
            self.lease.release()
        self.service.metrics.ended(self)


def fingerprint(weights: str, model: ServedModel) -> str:
    """Changes with the base's weights, the adapter version and the software."""
    adapter = "" if model.adapter is None else f"{model.adapter.key}:{model.adapter.digest}"
    digest = hashlib.sha256(f"{weights}|{adapter}|{VERSION}".encode()).hexdigest()
    return f"fp_{digest[:12]}"


def wire_reason(reason: FinishReason) -> str:
    assert reason is not FinishReason.CANCELLED, "nobody reads a cancelled answer"
    return reason.value
