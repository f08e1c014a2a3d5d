"""Events -> a response object of the Responses API, and the typed events that tell of its making."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from server.api.chat_answer import ChoiceReader
from server.api.errors import describe
from server.api.json_text import sse
from server.api.run import Run
from server.api.schemas.responses import ResponseRequest
from server.api.timings import timings_of
from server.tools.calls import CallArguments, CallStart, Piece, Text
from server.types import Delta, Event, Failed, Finished, Usage

Told = tuple[str, dict[str, Any]]  # an event's type and its fields


class ResponseBuilder:
    """The response so far. Each method gives the events that tell of what it changed."""

    def __init__(self, run: Run, reader: ChoiceReader, request: ResponseRequest) -> None:
        self._run = run
        self._reader = reader
        self._request = request
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the last item of output, while it grows
        self._parts: list[str] = []  # of the open item's text or arguments
        self._status = "in_progress"
        self._reason: str | None = None
        self._error: dict[str, Any] | None = None

    def begin(self) -> Iterator[Told]:
        yield "response.created", {"response": self.body()}
        yield "response.in_progress", {"response": self.body()}

    def read(self, event: Delta | Finished) -> Iterator[Told]:
        for piece in self._reader.read(event):
            yield from self._add(piece)
        if not isinstance(event, Finished):
            return
        if not self._output:  # an answer without a token of text is still a message
            yield from self._open_message()
        self._take_logprobs()
        yield from self._close(
            "incomplete" if self._reader.reason(event) == "length" else "completed"
        )
        if self._reader.reason(event) == "length":
            self._status, self._reason = "incomplete", "max_output_tokens"
        else:
            self._status = "completed"
        yield f"response.{self._status}", {"response": self.body()}

    def fail(self, error: Exception) -> Iterator[Told]:
        self._status = "failed"
        told = describe(error)[1]["error"]
        self._error = {"code": told["code"] or "server_error", "message": told["message"]}
        yield "response.failed", {"response": self.body()}

    def body(self) -> dict[str, Any]:
        """The response object as it stands."""
        request, run = self._request, self._run
        is_done = self._status in ("completed", "incomplete")
        wanted = request.text.format if request.text is not None else None
        return {
            "id": run.id,
            "object": "response",
            "created_at": run.created,
            "status": self._status,
            "background": False,
            "error": self._error,
            "incomplete_details": None if self._reason is None else {"reason": self._reason},
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": run.model,
            "output": [dict(item) for item in self._output],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "system_fingerprint": run.fingerprint,
            "temperature": run.request.params.temperature,
            "text": {
                "format": {"type": "text"}
                if wanted is None
                else wanted.model_dump(by_alias=True, exclude_none=True)
            },
            "tool_choice": "auto"
            if request.tool_choice is None
            else request.tool_choice
            if isinstance(request.tool_choice, str)
            else request.tool_choice.model_dump(),
            "tools": [_tool(tool.model_dump()) for tool in request.tools or ()],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": run.request.params.top_p,
            "truncation": "disabled",
            "usage": _usage(run.usage) if is_done else None,
            "user": request.user,
            **({"timings": timings_of([run])} if request.timings and is_done else {}),
        }

    def _add(self, piece: Piece) -> Iterator[Told]:
        match piece:
            case Text(text):
                if self._open is None or self._open["type"] != "message":
                    yield from self._close("completed")
                    yield from self._open_message()
                self._parts.append(text)
                yield (
                    "response.output_text.delta",
                    {
                        **self._place(),
                        "content_index": 0,
                        "delta": text,
                        "logprobs": self._take_logprobs(),
                    },
                )
            case CallStart(_, id_, name):
                yield from self._close("completed")
                self._open_item(
                    {"id": f"fc_{secrets.token_hex(12)}", "type": "function_call", "status": "in_progress",
                     "call_id": id_, "name": name, "arguments": ""}
                )  # fmt: skip
                yield "response.output_item.added", self._item()
            case CallArguments(_, text):
                self._parts.append(text)
                yield "response.function_call_arguments.delta", {**self._place(), "delta": text}

    def _open_message(self) -> Iterator[Told]:
        self._open_item(
            {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "status": "in_progress",
             "role": "assistant", "content": []}
        )  # fmt: skip
        yield "response.output_item.added", self._item()
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield "response.content_part.added", {**self._place(), "content_index": 0, "part": part}
        assert self._open is not None
        self._open["content"] = [{**part, "logprobs": []}]

    def _open_item(self, item: dict[str, Any]) -> None:
        self._open, self._parts = item, []
        self._output.append(item)

    def _close(self, status: str) -> Iterator[Told]:
        item = self._open
        if item is None:
            return
        text = "".join(self._parts)
        if item["type"] == "message":
            part = item["content"][0]
            part["text"] = text
            place = {**self._place(), "content_index": 0}
            yield "response.output_text.done", {**place, "text": text, "logprobs": part["logprobs"]}
            yield "response.content_part.done", {**place, "part": part}
        else:
            item["arguments"] = text
            yield (
                "response.function_call_arguments.done",
                {**self._place(), "name": item["name"], "arguments": text},
            )
        item["status"] = status
        yield "response.output_item.done", self._item()
        self._open = None

    def _take_logprobs(self) -> list[dict[str, Any]]:
        entries = self._reader.take_logprobs() or []
        if self._open is not None and self._open["type"] == "message":
            self._open["content"][0]["logprobs"] += entries
        return entries

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._output) - 1}

    def _item(self) -> dict[str, Any]:
        assert self._open is not None
        return {"output_index": len(self._output) - 1, "item": dict(self._open)}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {**tool, "strict": bool(tool["strict"])}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


async def response(run: Run, builder: ResponseBuilder) -> dict[str, Any]:
    """The body of an answer that is not streamed. Raises the error of a Failed event."""
    async for event in run:
        match event:
            case Failed(error):
                raise error
            case Delta() | Finished():
                for _ in builder.read(event):
                    pass
    return builder.body()


class ResponseStream:
    """Fits Formatter: the typed events of a streamed response, numbered. The last event ends it; there is no [DONE]."""

    def __init__(self, builder: ResponseBuilder) -> None:
        self._builder = builder
        self._number = 0
        self._has_begun = False

    def on_event(self, event: Event) -> bytes:
        told: list[Told] = []
        if not self._has_begun:
            self._has_begun = True
            told += self._builder.begin()
        match event:
            case Failed(error):
                told += self._builder.fail(error)
            case Delta() | Finished():
                told += self._builder.read(event)
        return b"".join(self._event(type_, fields) for type_, fields in told)

    def end(self) -> bytes:
        return b""

    def _event(self, type_: str, fields: dict[str, Any]) -> bytes:
        data = sse({"type": type_, "sequence_number": self._number, **fields}, event=type_)
        self._number += 1
        return data
