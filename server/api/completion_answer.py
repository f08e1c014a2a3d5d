"""Events -> completion bodies and chunks, with the legacy form of log-probabilities."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from server.api.completions import CompletionRuns
from server.api.errors import describe
from server.api.json_text import DONE, compact, quoted, sse
from server.api.logprobs import FLOOR, LogprobWriter, shown_logprobs
from server.api.run import Run, wire_reason
from server.api.timings import timings_of
from server.api.usage import usage_body
from server.types import Delta, Event, Failed, Finished, PromptScored, TokenLogprob


@dataclass(slots=True)
class TokenColumns:
    """The legacy form: one list per property. offset: where the next token begins, in characters of the answer."""

    writer: LogprobWriter
    num_top: int
    offset: int = 0
    tokens: list[str] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    top: list[dict[str, float] | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def add(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """logprob: None for a prompt's first token, which nothing comes before."""
        text, data = self.writer.word(token_id)
        self.tokens.append(text)
        self.offsets.append(self.offset)
        # A character begins with every byte that does not continue one.
        self.offset += sum(byte & 0xC0 != 0x80 for byte in data)
        if logprob is None:
            self.values.append(None)
            self.top.append(None)
            return
        value = max(logprob.logprob, FLOOR)
        top: dict[str, float] = {}
        for other, other_value in logprob.top[: self.num_top]:
            top.setdefault(self.writer.word(other)[0], max(other_value, FLOOR))
        top.setdefault(text, value)
        self.values.append(value)
        self.top.append(top)

    def take(self) -> dict[str, Any]:
        """The columns since the last call."""
        body = {
            "text_offset": self.offsets,
            "token_logprobs": self.values,
            "tokens": self.tokens,
            "top_logprobs": self.top if self.num_top else None,
        }
        self.offsets, self.values, self.tokens, self.top = [], [], [], []
        return body

    @property
    def is_empty(self) -> bool:
        return not self.tokens


class CompletionReader:
    """One choice. prompt: its text if it is to be echoed."""

    def __init__(
        self, run: Run, writer: LogprobWriter, prompt: str | None, num_top: int | None
    ) -> None:
        self._request = run.request
        self._prompt = prompt
        self.columns = None if num_top is None else TokenColumns(writer, num_top)

    def read(self, event: PromptScored | Delta | Finished) -> str:
        """The text that the event adds."""
        if isinstance(event, PromptScored):
            self._add_prompt(event.logprobs)
            return ""
        text = ""
        if self._prompt is not None:  # not said yet
            text, self._prompt = self._prompt, None
        if self.columns is not None:
            for logprob in shown_logprobs(self._request, event):
                self.columns.add(logprob.token_id, logprob)
        return text + event.text

    def _add_prompt(self, logprobs: tuple[TokenLogprob, ...]) -> None:
        if self.columns is not None:
            self.columns.add(self._request.prompt_ids[0], None)
            for logprob in logprobs:
                self.columns.add(logprob.token_id, logprob)


def new_readers(
    started: CompletionRuns, *, echo: bool, num_top: int | None
) -> list[CompletionReader]:
    writer = LogprobWriter(started.runs[0].request.model.tokenizer)
    return [
        CompletionReader(run, writer, prompt if echo else None, num_top)
        for run, prompt in zip(started.runs, started.prompts, strict=True)
        for _ in range(started.n)
    ]


async def completion(
    started: CompletionRuns, readers: list[CompletionReader], *, timings: bool
) -> dict[str, Any]:
    """The body of an answer that is not streamed. Raises the error of a Failed event."""
    n = started.n
    folds = [
        asyncio.ensure_future(_fold(run, readers[number * n : (number + 1) * n], number * n))
        for number, run in enumerate(started.runs)
    ]
    try:
        choices = await asyncio.gather(*folds)
    finally:
        # Where one fails the others are told nothing more, and would wait for ever.
        for fold in folds:
            fold.cancel()
        folds.clear()  # an error would hold its own task through this frame
    run = started.runs[0]
    return {
        "id": run.id,
        "object": "text_completion",
        "created": run.created,
        "model": run.model,
        "system_fingerprint": run.fingerprint,
        "choices": [choice for group in choices for choice in group],
        "usage": usage_body(started.usage),
        **({"timings": timings_of(started.runs)} if timings else {}),
    }


async def _fold(run: Run, readers: list[CompletionReader], first: int) -> list[dict[str, Any]]:
    texts: list[list[str]] = [[] for _ in readers]
    reasons = [""] * len(readers)
    async for event in run:
        if isinstance(event, Failed):
            raise event.error
        texts[event.index].append(readers[event.index].read(event))
        if isinstance(event, Finished):
            reasons[event.index] = wire_reason(event.reason)
    return [
        {
            "index": first + index,
            "text": "".join(texts[index]),
            "logprobs": None if reader.columns is None else reader.columns.take(),
            "finish_reason": reasons[index],
        }
        for index, reader in enumerate(readers)
    ]


class CompletionStream:
    """Fits Formatter: the chunks of a streamed completion."""

    def __init__(
        self,
        started: CompletionRuns,
        readers: list[CompletionReader],
        *,
        include_usage: bool,
        continuous_usage: bool,
        timings: bool,
    ) -> None:
        run = started.runs[0]
        self._started = started
        self._readers = readers
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._timings = timings
        self._has_failed = False
        head = compact(
            {
                "id": run.id,
                "object": "text_completion",
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
        reader = self._readers[event.index]
        text = reader.read(event)
        columns = reader.columns
        reason = wire_reason(event.reason) if isinstance(event, Finished) else None
        if not text and reason is None:
            return b""
        logprobs = "null" if columns is None or columns.is_empty else compact(columns.take())
        ended = "null" if reason is None else f'"{reason}"'
        usage = ""
        if self._continuous_usage:
            usage = f',"usage":{compact(usage_body(self._started.usage))}'
        elif self._include_usage:
            usage = ',"usage":null'
        is_last = all(run.generation.is_finished for run in self._started.runs)
        extra = self._extra() if is_last and not self._include_usage else ""
        return (
            f'{self._head}"choices":[{{"index":{event.index},"text":{quoted(text)},"logprobs":{logprobs},'
            f'"finish_reason":{ended}}}]{usage}{extra}}}\n\n'
        ).encode()

    def end(self) -> bytes:
        if self._has_failed or not self._include_usage:
            return DONE
        usage = compact(usage_body(self._started.usage))
        return f'{self._head}"choices":[],"usage":{usage}{self._extra()}}}\n\n'.encode() + DONE

    def _extra(self) -> str:
        return f',"timings":{compact(timings_of(self._started.runs))}' if self._timings else ""
