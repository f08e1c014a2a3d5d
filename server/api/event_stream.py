"""Server-sent events over ASGI: writes what a formatter makes of the events, and leaves nothing running.

sse-starlette sends, and watches for the client's leaving. Here one token is one write, without a task of its own: it
shares its cores with the model. This module does not know what the events say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from server.api.run import Run
from server.types import Event

KEEP_ALIVE = ServerSentEvent(comment="keep-alive", sep="\n").encode()


class Formatter(Protocol):
    """Makes bytes of events: whole server-sent events, each with its blank line."""

    def on_event(self, event: Event) -> bytes: ...

    def end(self) -> bytes:
        """What follows the last event."""
        ...


class Source(Protocol):
    """Where the events come from: a run, or several."""

    @property
    def runs(self) -> Sequence[Run]: ...

    async def next_event(self) -> Event | None:
        """The next event; None after the last. Cancelling it loses nothing."""
        ...

    def close(self) -> None:
        """Stop computing. Safe at any time, any number of times."""
        ...


class EventStream(EventSourceResponse):
    """Closes its source on the way out, however it is left: finished, failed, or the client gone.

    A `finally` in the body iterator is not enough: it never runs if the client leaves before the first byte, or if
    sending fails between two events.
    """

    def __init__(self, source: Source, formatter: Formatter, *, keepalive_seconds: float) -> None:
        self._source = source
        self._formatter = formatter
        self._keepalive_seconds = keepalive_seconds
        # The library's own ping comes whether or not data flows; ours only after silence.
        super().__init__(self._body(), ping=0, sep="\n", headers={"Cache-Control": "no-cache"})

    async def _body(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._keepalive_seconds):
                    event = await self._source.next_event()
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            if event is None:
                break
            data = self._formatter.on_event(event)
            if data:
                yield data
        yield self._formatter.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._source.close()
