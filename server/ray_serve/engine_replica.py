"""One engine under Ray Serve: a process with the model, the app of `python -m server`, and the look at the volume.

Ray Serve decides how many there are, replaces those that fail, and gives them requests. This class does not know the
gateway, nor the other engines.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from ray import serve
from sse_starlette.sse import AppStatus
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.app import create_routes
from server.api.caller import STATE, Caller
from server.api.guard import handler_of
from server.api.keys import Key
from server.api.observer import Observer
from server.api.service import Service
from server.cores import available_cores
from server.loading import load
from server.log_format import set_up
from server.memory import available_bytes
from server.ray_serve.in_process import call, scope_of
from server.ray_serve.meter import Meter
from server.ray_serve.settings import RaySettings
from server.ray_serve.wire import Head, Spent, Taken, WholeAnswer, WireCaller, WireRequest
from server.reporters import reporters_of

log = logging.getLogger("lorachat")

# An answer's tokens are told to the gateway in bunches: a piece for each would cost more than it tells.
SPENT_AT_ONCE = 64


class EngineReplica:
    """Made when Ray starts the replica, which counts as running when this has returned.

    Raises StartupError; Ray tries again a few times and then fails the deployment with its message.
    """

    def __init__(self, settings: RaySettings) -> None:
        set_up(settings.log_format, settings.log_level)
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # A stream ends when it is told to, and not because some uvicorn of this process was stopped.
        AppStatus.enable_automatic_graceful_drain = False
        threads = settings.threads or 1
        # As much of this machine's memory as of its cores: its neighbours are engines, too.
        share = min(1.0, threads / available_cores())
        loaded, refresh = load(settings, threads, int(available_bytes() * share))
        self._name: str = serve.get_replica_context().replica_id.unique_id
        self._service = Service(
            max_choices=min(settings.max_choices, settings.max_running + settings.max_waiting),
            keepalive_seconds=settings.keepalive_seconds,
            max_answer_tokens=settings.max_answer_tokens,
            keeps_content=settings.log_content,
        )
        reporters, self._tracing = reporters_of(settings)
        # Without a door: the gateway's is before all engines, and nobody reaches an engine but through it.
        self._unobserved = _Named(create_routes(self._service))
        self._app = Observer(self._unobserved, (self._service.report, *reporters))
        self._service.set_loaded(loaded)
        self._stopping = threading.Event()
        threading.Thread(
            target=self._watch, args=(refresh, settings.adapter_poll_seconds), daemon=True
        ).start()

    async def stream(self, request: WireRequest) -> AsyncIterator[Taken | Spent | Head | bytes]:
        """The answer as it comes. Cancelled by Ray when the caller leaves, which frees what the answer held."""
        yield Taken(self._name)
        meter = Meter(request.caller.tokens_per_minute, request.caller.tokens_left)
        async for piece in self._answer(self._app, request, meter):
            # The prompt's before the head, which tells what is left; the answer's now and then.
            if meter.unsaid >= SPENT_AT_ONCE or (meter.unsaid and isinstance(piece, Head)):
                yield Spent(meter.take_unsaid())
            yield piece
        if meter.unsaid:
            yield Spent(meter.take_unsaid())

    async def whole(self, request: WireRequest) -> WholeAnswer:
        """The answer at once: for the small questions that go to every engine, and of which the gateway tells."""
        head, body = Head(500, ()), b""
        async for piece in self._answer(self._unobserved, request, Meter(None, 0)):
            if isinstance(piece, Head):
                head = piece
            else:
                body += piece
        return WholeAnswer(self._name, head, body)

    async def _answer(
        self, app: ASGIApp, request: WireRequest, meter: Meter
    ) -> AsyncIterator[Head | bytes]:
        scope = scope_of(request)
        scope[STATE] = _caller(request.caller, meter)
        async with aclosing(call(app, scope, request.body)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Head):
                    self._service.metrics.responded(request.method, handler_of(scope), piece.status)
                yield piece

    def check_health(self) -> None:
        """Asked by Ray every few seconds; a replica that raises is replaced."""
        if self._service.failure is not None:
            raise RuntimeError(self._service.failure)

    def __del__(self) -> None:
        # Called by Ray after the drain: when the running answers have ended, or their time is up.
        stopping = getattr(self, "_stopping", None)
        if stopping is not None:
            stopping.set()
            self._service.engine.stop()
            if self._tracing is not None:
                self._tracing.close()

    def _watch(self, refresh: Callable[[], None], seconds: float) -> None:
        while not self._stopping.wait(seconds):
            refresh()


class _Named:
    """Answers with the request's id, as the door has named it: whoever reports the request reads it there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope[STATE].request_id.encode()

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
            await send(message)

        await self._app(scope, receive, named_send)


def _caller(told: WireCaller, meter: Meter) -> Caller:
    key = None
    if told.key_name is not None:
        # Its digest has done its work at the door.
        key = Key(told.key_name, b"", told.models, told.is_admin, meter)
    return Caller(told.request_id, key, told.administration, told.timeout_seconds)
