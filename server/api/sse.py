"""Events -> chunks -> bytes. The answer that is not streamed is the same events, folded."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from server.api.errors import describe
from server.api.schemas import (
    AssistantMessage,
    ChatCompletion,
    CompletionChoice,
    UsageBody,
)
from server.engine.engine import Generation
from server.types import Delta, Event, Failed, Finished, FinishReason, PromptScored, Usage


@dataclass(slots=True)
class Answer:
    """What all chunks of one answer have in common, and what was said so far.

    id: `chatcmpl-…`. model: as the server resolved it. created: Unix seconds.
    """

    id: str
    model: str
    fingerprint: str
    prompt_tokens: int
    n: int
    created: int = field(default_factory=lambda: int(time.time()))
    completion_tokens: int = 0
    first_token_at: float | None = None  # time.perf_counter()
    has_failed: bool = False

    def observe(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.has_failed = True
            return
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        if isinstance(event, Finished):
            self.completion_tokens += event.completion_tokens

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens)

    def chunk(self, choices: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **extra,
        }


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=UsageBody.Details(cached_tokens=usage.cached_tokens),
    )


async def completion(generation: Generation, answer: Answer) -> ChatCompletion:
    """Fold a generation into one object. Raises the error of a Failed event."""
    texts: list[list[str]] = [[] for _ in range(answer.n)]
    reasons: dict[int, FinishReason] = {}
    async for event in generation:
        answer.observe(event)
        match event:
            case Delta(index, text):
                texts[index].append(text)
            case Finished(index, text, reason):
                texts[index].append(text)
                reasons[index] = reason
            case Failed(error):
                raise error
    return ChatCompletion(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        system_fingerprint=answer.fingerprint,
        choices=[
            CompletionChoice(
                index=index,
                message=AssistantMessage(content="".join(texts[index])),
                finish_reason=_wire_reason(reasons[index]),
            )
            for index in range(answer.n)
        ],
        usage=usage_body(answer.usage),
    )


async def chunks(
    generation: Generation, answer: Answer, *, include_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """The chunk objects of a stream, an error object among them if the generation fails."""
    # Only a stream that asked for usage has the field at all: null until the last chunk, as OpenAI does it.
    extra: dict[str, Any] = {"usage": None} if include_usage else {}
    begun: set[int] = set()

    def say(index: int, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return answer.chunk([choice], **extra)

    async for event in generation:
        answer.observe(event)
        if isinstance(event, Failed):
            yield describe(event.error)[1]
            return
        if isinstance(event, PromptScored):
            continue
        # The role goes out with the first token and not before: clients time the first chunk.
        if event.index not in begun:
            begun.add(event.index)
            yield say(event.index, {"role": "assistant", "content": ""})
        if event.text:
            yield say(event.index, {"content": event.text})
        if isinstance(event, Finished):
            yield say(event.index, {}, _wire_reason(event.reason))
    if include_usage:
        yield answer.chunk([], usage=usage_body(answer.usage).model_dump())


# Line ends to Unicode though not to SSE: many clients split with their language's own line splitter.
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


def _json_line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)


def _wire_reason(reason: FinishReason) -> Any:
    assert reason is not FinishReason.CANCELLED, "nobody reads a cancelled answer"
    return reason.value


class ChatStream(EventSourceResponse):
    """An event stream that cancels its generation on the way out, however it is left.

    A `finally` in the body iterator is not enough: it never runs if the client leaves before the first byte, or
    if sending fails between two events.
    """

    def __init__(
        self,
        generation: Generation,
        answer: Answer,
        *,
        include_usage: bool,
        keepalive_seconds: float,
        headers: dict[str, str],
        on_end: Callable[[], None],
    ) -> None:
        self._generation = generation
        self._on_end = on_end
        self._keepalive_seconds = keepalive_seconds
        body = self._encode(chunks(generation, answer, include_usage=include_usage))
        # The library's own ping comes whether or not data flows; ours only after silence.
        super().__init__(body, ping=0, sep="\n", headers={"Cache-Control": "no-cache", **headers})

    async def _encode(
        self, objects: AsyncIterator[dict[str, Any]]
    ) -> AsyncIterator[ServerSentEvent]:
        upcoming = asyncio.ensure_future(anext(objects, None))
        try:
            while True:
                done, _ = await asyncio.wait({upcoming}, timeout=self._keepalive_seconds)
                if not done:
                    yield ServerSentEvent(comment="keep-alive", sep="\n")
                    continue
                chunk = upcoming.result()
                if chunk is None:
                    break
                yield ServerSentEvent(_json_line(chunk), sep="\n")
                upcoming = asyncio.ensure_future(anext(objects, None))
        finally:
            upcoming.cancel()
        yield ServerSentEvent("[DONE]", sep="\n")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()
            self._on_end()
