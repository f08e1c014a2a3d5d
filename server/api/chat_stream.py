"""Events -> the chunks of a streamed chat completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.api.chat_answer import ChoiceReader
from server.api.errors import describe
from server.api.json_text import DONE, compact, quoted, sse
from server.api.logprobs import dump
from server.api.run import Run
from server.api.timings import timings_of
from server.api.usage import usage_body
from server.tools.calls import CallArguments, CallStart, Piece, Text
from server.types import Delta, Event, Failed, Finished, PromptScored


class ChatStream:
    """Fits Formatter. Chunks are put together from ready-made text: a model of each would cost more than the token.

    include_usage: a last chunk with the usage, and `usage: null` in all others, as OpenAI does it; with
    continuous_usage the usage so far instead of null.
    """

    def __init__(
        self,
        run: Run,
        readers: Sequence[ChoiceReader],
        *,
        include_usage: bool,
        continuous_usage: bool,
        timings: bool,
    ) -> None:
        self._run = run
        self._readers = readers
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._timings = timings
        self._begun: set[int] = set()
        self._has_failed = False
        head = compact(
            {
                "id": run.id,
                "object": "chat.completion.chunk",
                "created": run.created,
                "model": run.model,
                "system_fingerprint": run.fingerprint,
            }
        )
        self._head = f"data: {head[:-1]},"

    def on_event(self, event: Event) -> bytes:
        if isinstance(event, Failed):
            self._has_failed = True
            return sse(describe(event.error)[1])
        if isinstance(event, PromptScored):
            return b""
        return "".join(self._chunks(event)).encode()

    def end(self) -> bytes:
        if self._has_failed or not self._include_usage:
            return DONE
        extra = self._extra(with_timings=self._timings)
        usage = compact(usage_body(self._run.usage))
        return f'{self._head}"choices":[],"usage":{usage}{extra}}}\n\n'.encode() + DONE

    def _chunks(self, event: Delta | Finished) -> list[str]:
        index, reader, chunks = event.index, self._readers[event.index], []
        pieces = reader.read(event)
        # The role goes out with the first token and not before: clients time the first chunk.
        if index not in self._begun:
            self._begun.add(index)
            chunks.append(self._chunk(index, '{"role":"assistant","content":""}'))
        chunks += [self._chunk(index, _delta(piece), reader.take_logprobs()) for piece in pieces]
        if isinstance(event, Finished):
            chunks.append(
                self._chunk(index, "{}", reader.take_logprobs() or None, reader.reason(event))
            )
        return chunks

    def _chunk(
        self,
        index: int,
        delta: str,
        logprobs: list[dict[str, Any]] | None = None,
        reason: str | None = None,
    ) -> str:
        shown = "null" if logprobs is None else f'{{"content":{dump(logprobs)},"refusal":null}}'
        ended = "null" if reason is None else f'"{reason}"'
        usage = ""
        if self._continuous_usage:
            usage = f',"usage":{compact(usage_body(self._run.usage))}'
        elif self._include_usage:
            usage = ',"usage":null'
        extra = ""
        if reason is not None and not self._include_usage:
            extra = self._extra(with_timings=self._timings)
        return (
            f'{self._head}"choices":[{{"index":{index},"delta":{delta},"logprobs":{shown},'
            f'"finish_reason":{ended}}}]{usage}{extra}}}\n\n'
        )

    def _extra(self, *, with_timings: bool) -> str:
        return f',"timings":{compact(timings_of([self._run]))}' if with_timings else ""


def _delta(piece: Piece) -> str:
    match piece:
        case Text(text):
            return f'{{"content":{quoted(text)}}}'
        case CallStart(index, id_, name):
            return (
                f'{{"tool_calls":[{{"index":{index},"id":"{id_}","type":"function",'
                f'"function":{{"name":{quoted(name)},"arguments":""}}}}]}}'
            )
        case CallArguments(index, text):
            return (
                f'{{"tool_calls":[{{"index":{index},"function":{{"arguments":{quoted(text)}}}}}]}}'
            )
