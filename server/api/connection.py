"""One connection, with an end to patience: uvicorn's own protocol never times out whoever stalls.

A client that sends no whole head of a request, or takes nothing of what is written to it, is cut after stall_seconds;
for an answer that is being computed this is as if the caller had left. What waits to be sent is bounded: 64 KiB here
and about as much in the kernel. (The body's deadline is the guard's: it can still be told in words.) How many there may
be is places.py's to say; whether a request may begin the guard asks, by what stands in the request's state.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api.places import Places
from server.api.policy import MAX_HEAD_BYTES, MAY_ASK

log = logging.getLogger("lorachat.api")

_SEND_BUFFER_BYTES = 64 * 2**10


def connection_class(stall_seconds: float, places: Places | None = None) -> type[asyncio.Protocol]:
    """For uvicorn.Config(http=…). places: None is as many as the system allows."""

    class Connection(_Connection):
        _stall_seconds = stall_seconds
        _places = places

    return Connection


class _Connection(H11Protocol):
    _stall_seconds: float
    _places: Places | None

    def __init__(self, config: Config, **state: Any) -> None:
        super().__init__(config, **state)
        self._waiting_since = 0.0  # for the head of a request
        if self._places is not None:
            self.app_state = {**self.app_state, MAY_ASK: self._may_ask}
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        if self._places is not None and not self._places.enter(self):
            transport.abort()
            return
        connected = transport.get_extra_info("socket")
        # The kernel would take megabytes for a reader who is not there.
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._head_timer = self.loop.call_later(self._stall_seconds, self._check_head)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        if self._places is not None:
            self._places.leave(self)
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def idle_since(self) -> float | None:
        """When it began to wait for a request; None while one is in work, or an answer is not all sent."""
        if self._is_answering or self.transport.get_write_buffer_size():
            return None
        return self._waiting_since

    def close(self) -> None:
        self.transport.close()

    def on_response_complete(self) -> None:
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._stall_seconds, self._cut_reader)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """In the shape of every other error. uvicorn calls it where h11's error is being handled."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        said = "The request is not HTTP."
        if status == 431:
            said = f"The request's headers are larger than {MAX_HEAD_BYTES} bytes."
        body = {"message": said, "type": "invalid_request_error", "param": None, "code": None}
        data = json.dumps({"error": body}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(data))),
            ("connection", "close"),
        ]
        parts: list[h11.Event] = [
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=data),
            h11.EndOfMessage(),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for part in parts:
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def _may_ask(self) -> bool:
        return self._places is None or self._places.may_ask(self)

    def _check_head(self) -> None:
        """Once in a while, because most connections are done long before."""
        left = self._stall_seconds - (self.loop.time() - self._waiting_since)
        if self._is_answering:
            left = self._stall_seconds
        if left <= 0:
            self.transport.abort()
        else:
            self._head_timer = self.loop.call_later(left, self._check_head)

    def _cut_reader(self) -> None:
        log.info("a reader took nothing for %g s and is cut", self._stall_seconds)
        # Not close(): that would wait for the reader to take what is buffered.
        self.transport.abort()
