"""Recorded bytes of an event stream -> when text came, and what the server counted. No clock and no network here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Recording:
    """text_times: seconds at which an event with text arrived, in the caller's clock, ascending.

    prompt_tokens, completion_tokens, cached_tokens: as the server's usage says; None where it says nothing.
    error: what the server said went wrong, inside the stream.
    """

    text: str = ""
    text_times: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None


def read_stream(arrivals: Iterable[tuple[float, bytes]]) -> Recording:
    """arrivals: (seconds, bytes) as they came off the socket. An event counts as arrived when its line is whole.

    A stream that breaks off or holds what is not JSON gives a Recording with its error set.
    """
    recording = Recording()
    texts: list[str] = []
    buffered = b""
    try:
        for at, data in arrivals:
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                _read_line(line.rstrip(b"\r"), at, recording, texts)
        if buffered:  # some servers do not end their last line
            _read_line(buffered.rstrip(b"\r"), at, recording, texts)
    except (ValueError, KeyError, TypeError) as error:
        recording.error = f"the stream cannot be read: {error!r}"
    recording.text = "".join(texts)
    if recording.finish_reason is None and recording.error is None:
        recording.error = "the stream ended without a finish_reason"
    return recording


def _read_line(line: bytes, at: float, recording: Recording, texts: list[str]) -> None:
    if not line.startswith(b"data:"):
        return  # comments and empty lines
    data = line[5:].strip()
    if not data or data == b"[DONE]":
        return
    event: dict[str, Any] = json.loads(data)
    if event.get("error"):
        recording.error = json.dumps(event["error"])
        return
    for choice in event.get("choices") or ():
        text = (choice.get("delta") or {}).get("content")
        if text:
            texts.append(text)
            recording.text_times.append(at)
        recording.finish_reason = choice.get("finish_reason") or recording.finish_reason
    usage = event.get("usage")
    if usage:
        recording.prompt_tokens = usage["prompt_tokens"]
        recording.completion_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        recording.cached_tokens = details.get("cached_tokens")
