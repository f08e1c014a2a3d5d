"""The events of one chat choice, read: text, calls, log-probabilities and the end. Streamed or not, it is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.api.logprobs import LogprobWriter, shown_logprobs
from server.api.run import wire_reason
from server.tools.calls import Piece, Text
from server.tools.parser import CallParser
from server.types import Delta, Finished, GenerationRequest


class ChoiceReader:
    """One choice. new_parser: finds calls, where the request has tools. num_top: top_logprobs; None tells none."""

    def __init__(
        self,
        request: GenerationRequest,
        new_parser: Callable[[], CallParser] | None,
        writer: LogprobWriter,
        num_top: int | None,
    ) -> None:
        self._parser = None if new_parser is None else new_parser()
        self._request = request
        self._writer = writer
        self._num_top = num_top
        self._logprobs: list[dict[str, Any]] = []  # read, and not yet taken

    def read(self, event: Delta | Finished) -> list[Piece]:
        """What the event adds to the answer."""
        if self._num_top is not None:
            self._read_logprobs(event, self._num_top)
        if self._parser is None:
            return [Text(event.text)] if event.text else []
        pieces = self._parser.push(event.text) if event.text else []
        if isinstance(event, Finished):
            pieces += self._parser.finish()
        return pieces

    def take_logprobs(self) -> list[dict[str, Any]] | None:
        """Those of the tokens read since the last call; None if the request wants none."""
        if self._num_top is None:
            return None
        taken, self._logprobs = self._logprobs, []
        return taken

    def reason(self, event: Finished) -> str:
        """OpenAI's finish_reason."""
        reason = wire_reason(event.reason)
        if reason == "stop" and self._parser is not None and self._parser.num_calls:
            return "tool_calls"
        return reason

    def _read_logprobs(self, event: Delta | Finished, num_top: int) -> None:
        self._logprobs += [
            self._writer.entry(logprob, num_top) for logprob in shown_logprobs(self._request, event)
        ]
