"""Watches each request from outside of all else, and tells of it once: when its last byte, or its caller, has gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.record import RECORD, RequestRecord

log = logging.getLogger("lorachat.api")

Reporter = Callable[[RequestRecord], None]


class Observer:
    """ASGI middleware, the outermost. reporters: told of every request; one that raises harms no other."""

    def __init__(self, app: ASGIApp, reporters: Sequence[Reporter]) -> None:
        self._app = app
        self._reporters = reporters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[RECORD] = RequestRecord(scope)

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                for name, value in message.get("headers", ()):
                    if name == b"x-request-id":  # as the door named it, and as its caller knows it
                        record.request_id = value.decode("latin-1")
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        finally:
            record.ended = time.perf_counter()
            for report in self._reporters:
                try:
                    report(record)
                except Exception:
                    log.exception("a request could not be reported")
