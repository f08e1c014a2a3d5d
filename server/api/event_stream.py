"""Server-sent events over ASGI: writes what a formatter makes of the events, and leaves nothing running.

Written for the cost per token: it shares its cores with the model, so one token is one write, without a task, a timer
or a queue of its own. It does not know what the events say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.types import Event

KEEP_ALIVE = b": keep-alive\n\n"


class Formatter(Protocol):
    """Makes bytes of events: whole server-sent events, each with its blank line."""

    def on_event(self, event: Event) -> bytes: ...

    def end(self) -> bytes:
        """What follows the last event."""
        ...


class Source(Protocol):
    """Where the events come from: a run, or several."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def close(self) -> None:
        """Stop computing. Safe at any time, any number of times."""
        ...


class EventStream(Response):
    """Closes its source on the way out, however it is left: finished, failed, or the client gone.

    A `finally` in a body iterator is not enough: it never runs if the client leaves before the first byte, or if
    sending fails between two events.
    """

    def __init__(self, source: Source, formatter: Formatter, *, keepalive_seconds: float) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            media_type="text/event-stream",
        )
        del self.headers["content-length"]
        self._source = source
        self._formatter = formatter
        self._keepalive_seconds = keepalive_seconds
        self._last_sent = 0.0
        self._is_sending = False

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        tasks = [
            asyncio.ensure_future(self._write(send)),
            asyncio.ensure_future(_disconnect(receive)),
            asyncio.ensure_future(self._keep_alive(send)),
        ]
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            self._source.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        self._last_sent = time.monotonic()
        async for event in self._source:
            data = self._formatter.on_event(event)
            if data:
                await self._send(send, data)
        await send(
            {"type": "http.response.body", "body": self._formatter.end(), "more_body": False}
        )

    async def _send(self, send: Send, data: bytes) -> None:
        self._is_sending = True
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._is_sending = False
        self._last_sent = time.monotonic()

    async def _keep_alive(self, send: Send) -> None:
        """A comment after every keepalive_seconds of silence. One timer for the whole stream, not one per token."""
        while True:
            due = self._last_sent + self._keepalive_seconds - time.monotonic()
            if self._last_sent == 0 or due > 0:
                await asyncio.sleep(max(due, 0.001) if self._last_sent else self._keepalive_seconds)
            elif self._is_sending:  # the client is slow to read; it has enough to read
                await asyncio.sleep(self._keepalive_seconds)
            else:
                await self._send(send, KEEP_ALIVE)


async def _disconnect(receive: Receive) -> None:
    """Returns when the connection closes. The body has been read, so nothing else can arrive."""
    while (await receive())["type"] != "http.disconnect":
        pass
