"""Sends one chat completion and records when its bytes came. Bytes are read only afterwards: see stream.py.

The client shares its machine with the server it measures, so it does as little as it can while an answer runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.stream import Recording, read_stream

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Target:
    """What a request names: the model, and fields that only this server knows (its way to choose an adapter)."""

    model: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. Times in seconds of time.perf_counter(); error is None where all went well."""

    begun: float
    ended: float
    turn: int
    recording: Recording

    @property
    def error(self) -> str | None:
        return self.recording.error

    @property
    def tokens(self) -> int:
        """As the server counted; else the pieces of text it sent."""
        counted = self.recording.completion_tokens
        return len(self.recording.text_times) if counted is None else counted

    @property
    def first_token_seconds(self) -> float:
        return self.recording.text_times[0] - self.begun

    @property
    def token_seconds(self) -> float | None:
        """Mean time between tokens, or None for answers of one token."""
        times = self.recording.text_times
        return (times[-1] - times[0]) / (self.tokens - 1) if self.tokens > 1 else None


async def ask(
    client: httpx.AsyncClient, target: Target, messages: Messages, max_tokens: int, turn: int = 0
) -> Sample:
    """A greedy, streamed answer. Never raises for what a server does; the sample holds the error."""
    body = {
        "model": target.model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **target.extra,
    }
    arrivals: list[tuple[float, bytes]] = []
    begun = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for data in response.aiter_raw():
                # One by one: an error in the middle must not lose what came before.
                arrivals += ((time.perf_counter(), data),)
            if response.status_code != 200:
                said = b"".join(data for _, data in arrivals)[:300].decode("utf-8", "replace")
                return Sample(
                    begun,
                    time.perf_counter(),
                    turn,
                    Recording(error=f"status {response.status_code}: {said}"),
                )
    except httpx.HTTPError as error:
        return Sample(begun, time.perf_counter(), turn, Recording(error=repr(error)))
    ended = time.perf_counter()
    recording = read_stream(arrivals)
    if not recording.text_times and recording.error is None:
        recording.error = "the answer is empty"
    return Sample(begun, ended, turn, recording)


def open_client(url: str) -> httpx.AsyncClient:
    """No limit on connections, and a long patience: a slow server is slow, not wrong.

    Each request opens its own connection: some servers close idle ones just when the next request is sent.
    """
    return httpx.AsyncClient(
        base_url=url,
        timeout=httpx.Timeout(600, connect=10),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        headers={"accept-encoding": "identity"},
        trust_env=False,
    )
