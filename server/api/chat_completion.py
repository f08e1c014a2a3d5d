"""Events -> one chat completion that is not streamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from server.api.chat_answer import ChoiceReader
from server.api.run import Run
from server.api.timings import timings_of
from server.api.usage import usage_body
from server.tools.calls import CallArguments, CallStart, Piece, Text
from server.types import Delta, Failed, Finished


@dataclass(slots=True)
class FoldedChoice:
    """One whole choice."""

    text: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    arguments: list[list[str]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] | None = None
    reason: str = ""

    def add(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            match piece:
                case Text(text):
                    self.text.append(text)
                case CallStart(_, id_, name):
                    self.calls.append({"id": id_, "type": "function", "function": {"name": name}})
                    self.arguments.append([])
                case CallArguments(index, text):
                    self.arguments[index].append(text)

    def message(self) -> dict[str, Any]:
        content = "".join(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.calls:
            message["content"] = content or None
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": "".join(arguments)}}
                for call, arguments in zip(self.calls, self.arguments, strict=True)
            ]
        return message


async def fold(run: Run, readers: Sequence[ChoiceReader]) -> list[FoldedChoice]:
    """Every choice of a run, whole. Raises the error of a Failed event."""
    choices = [FoldedChoice() for _ in readers]
    async for event in run:
        match event:
            case Failed(error):
                raise error
            case Delta() | Finished():
                choice, reader = choices[event.index], readers[event.index]
                choice.add(reader.read(event))
                if isinstance(event, Finished):
                    choice.logprobs = reader.take_logprobs()
                    choice.reason = reader.reason(event)
    return choices


async def chat_completion(
    run: Run, readers: Sequence[ChoiceReader], *, timings: bool
) -> dict[str, Any]:
    """The answer's body."""
    choices = await fold(run, readers)
    return {
        "id": run.id,
        "object": "chat.completion",
        "created": run.created,
        "model": run.model,
        "system_fingerprint": run.fingerprint,
        "choices": [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": None
                if choice.logprobs is None
                else {"content": choice.logprobs, "refusal": None},
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage_body(run.usage),
        **({"timings": timings_of([run])} if timings else {}),
    }
