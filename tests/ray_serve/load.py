"""Streams that run side by side, and what became of each."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.ray_serve.conftest import KEY, REPLICA, Cluster


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": "base",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        **fields,
    }


@dataclass
class Stream:
    """One streamed answer. events: the data of each event, [DONE] left out."""

    status: int = 0
    retry_after: str = ""
    replica: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False
    failure: str | None = None

    @property
    def error(self) -> dict[str, Any] | None:
        return next((event["error"] for event in self.events if "error" in event), None)

    @property
    def finish_reason(self) -> str | None:
        reasons = [c["finish_reason"] for e in self.events for c in e.get("choices", ())]
        return next((reason for reason in reasons if reason), None)


class Load:
    """Streams in threads. Leaving the block waits for all of them."""

    def __init__(
        self, cluster: Cluster, bodies: list[dict[str, Any]], sessions: list[str] | None = None
    ) -> None:
        self.streams = [Stream() for _ in bodies]
        named = sessions or [""] * len(bodies)
        self._threads = [
            threading.Thread(target=_run, args=(cluster, body, session, stream))
            for body, session, stream in zip(bodies, named, self.streams, strict=True)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(120)

    @property
    def have_begun(self) -> bool:
        return all(len(stream.events) > 3 for stream in self.streams)


def _run(cluster: Cluster, body: dict[str, Any], session: str, stream: Stream) -> None:
    url = f"{cluster.url}/v1/chat/completions"
    headers = {"x-api-key": KEY, **({"x-session-id": session} if session else {})}
    try:
        with httpx.stream(
            "POST", url, json={**body, "stream": True}, headers=headers, timeout=120
        ) as answer:
            stream.status = answer.status_code
            stream.retry_after = answer.headers.get("retry-after", "")
            stream.replica = answer.headers.get(REPLICA, "")
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    stream.is_done = True
                elif line.startswith("data: "):
                    stream.events.append(json.loads(line[6:]))
    except httpx.HTTPError as error:
        stream.failure = repr(error)
