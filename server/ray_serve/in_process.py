"""Calls an ASGI application without a socket: a request in, the pieces of its answer out as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from starlette.types import ASGIApp, Message, Scope

from server.ray_serve.wire import Head, WireRequest


async def call(app: ASGIApp, scope: Scope, body: bytes) -> AsyncGenerator[Head | bytes, None]:
    """The head, then the body in pieces: what has come up since the last piece was taken is one piece.

    scope: as scope_of makes it; the application may write into it. Closing the iterator early is the caller's
    disconnect: the application's task is cancelled, and over when this returns. Raises what the application raises.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    bodies = [body]

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        # A disconnect is a cancellation here; nothing else follows the body.
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def send(message: Message) -> None:
        messages.put_nowait(message)

    task = asyncio.ensure_future(app(scope, receive, send))
    task.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        while True:
            taken = [await messages.get()]
            while not messages.empty():
                taken.append(messages.get_nowait())
            piece = bytearray()
            for message in taken:
                if message is None:
                    continue
                if message["type"] == "http.response.start":
                    yield Head(message["status"], tuple(map(tuple, message.get("headers", ()))))
                else:
                    piece += message.get("body", b"")
            if piece:
                yield bytes(piece)
            if taken[-1] is None:
                break
        await task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


def scope_of(request: WireRequest) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": request.query,
        "root_path": "",
        "headers": [list(header) for header in request.headers],
        "client": None,
        "server": None,
        "state": {},
    }
