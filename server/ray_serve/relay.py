"""Passes an engine's answer on to the caller, and ends it cleanly when the engine is lost.

A stream that has begun can no longer change its status: its caller gets an error event in the stream, as from an
engine that fails but lives.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Protocol

from fastapi import Response
from starlette.types import Receive, Scope, Send

from server.ray_serve.wire import Head, Spent

log = logging.getLogger("lorachat.gateway")


class Pieces(Protocol):
    """Ray Serve's response, as far as it is needed here."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    def cancel(self) -> None: ...


class Relay(Response):
    """describe: the body of the error event for an exception of the pieces. spend: told of the tokens used."""

    def __init__(
        self,
        head: Head,
        headers: list[tuple[bytes, bytes]],
        pieces: Pieces,
        describe: Callable[[Exception], dict[str, Any]],
        spend: Callable[[int], None],
    ) -> None:
        super().__init__(status_code=head.status)
        self.raw_headers = headers
        self._is_event_stream = head.is_event_stream
        self._pieces = pieces
        self._describe = describe
        self._spend = spend

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        passing = asyncio.ensure_future(self._pass(send))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({passing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                passing.result()
        finally:
            # However this is left: what the engine holds for the answer is freed.
            cancel(self._pieces)
            passing.cancel()
            gone.cancel()
            await asyncio.gather(passing, gone, return_exceptions=True)

    async def _pass(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        try:
            async for piece in self._pieces:
                if isinstance(piece, Spent):
                    self._spend(piece.num_tokens)
                    continue
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            if not self._is_event_stream:
                raise
            log.error("an engine was lost in the middle of a stream: %s", type(error).__name__)
            event = f"data: {json.dumps(self._describe(error))}\n\ndata: [DONE]\n\n"
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def cancel(pieces: Pieces) -> None:
    """Ray Serve's cancel waits for the request to be placed, and raises what kept it from being placed."""
    with suppress(Exception):
        pieces.cancel()


async def _disconnect(receive: Receive) -> None:
    """Returns when the caller leaves. The body has been read, so nothing else can arrive."""
    while (await receive())["type"] != "http.disconnect":
        pass
