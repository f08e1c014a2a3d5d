"""The one door before all engines: keys and body size, then the engine that has the conversation, then its answer.

It holds no model, so that one of it is enough for many engines, and what is limited per key is limited over all of
them. It does not know what an answer says, but for its being a stream of events, which it can end with an error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from ray import serve
from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import errors
from server.api.admin_access import is_on_admin_port
from server.api.app import add_door
from server.api.caller import Caller, caller_of
from server.api.metrics import Metrics
from server.api.observer import Observer
from server.api.record import RequestRecord
from server.api.request_log import RequestLog
from server.door import policy_of, watch_keys
from server.errors import OverloadedError, ServerError, UnavailableError
from server.log_format import set_up
from server.ray_serve.exposition import merged
from server.ray_serve.relay import Relay, cancel
from server.ray_serve.session import session_of
from server.ray_serve.settings import RaySettings
from server.ray_serve.wire import Head, Spent, Taken, WholeAnswer, WireCaller, WireRequest

log = logging.getLogger("lorachat.gateway")

# In a request's scope when an engine has it.
FORWARDED = "lorachat.forwarded"
# A request to every engine, for what is asked of a server and not of a model.
ASK_ALL_SECONDS = 5.0
# An adapter may have to be read from a slow disk and checked.
ADMIN_SECONDS = 120.0
NO_ENGINE = "No engine answers at the moment. Ask again soon."
# What belongs to a connection and not to a request, and what the gateway says itself.
REQUEST_ID = b"x-request-id"
OWN_HEADERS = frozenset(
    {b"connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade", REQUEST_ID}
)
# A credential has done its work at the door.
NOT_PASSED = OWN_HEADERS | {b"authorization", b"x-api-key", b"cookie"}


class Gateway:
    """engines: Ray Serve's handle to the engines; it queues, routes and notices the dead."""

    def __init__(self, engines: DeploymentHandle, settings: RaySettings) -> None:
        set_up(settings.log_format, settings.log_level)
        self._engines = engines
        self._policy, key_file = policy_of(settings)
        if key_file is not None:
            threading.Thread(
                target=watch_keys, args=(key_file, threading.Event()), daemon=True
            ).start()
        self._name: str = serve.get_replica_context().replica_id.unique_id
        self._log = RequestLog()
        self._metrics = Metrics(lambda: None, {"kernel": "gateway"}, {}, lambda: True)
        self._registry = CollectorRegistry()
        self._waiting = Gauge(
            "vllm:num_requests_waiting", "Sequences that wait.", registry=self._registry
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = FastAPI(title="lorachat", docs_url=None, redoc_url=None, openapi_url=None)
        errors.install(app, self._metrics.rejected)
        app.add_api_route("/health", self._health, methods=["GET", "HEAD"])
        app.add_api_route("/metrics", self._all_metrics, methods=["GET"])
        app.add_api_route("/v1/models", self._models, methods=["GET"])
        app.add_api_route("/{path:path}", self._ask_all, methods=["GET", "HEAD"])
        app.add_api_route("/{path:path}", self._forward, methods=["POST", "PUT", "PATCH", "DELETE"])
        add_door(app, self._policy, self._metrics)
        app.add_middleware(Observer, reporters=[self._report])
        return _Unnamed(app)

    def _report(self, record: RequestRecord) -> None:
        """Of a request that an engine has taken, the engine tells; of all others the gateway, once for all engines."""
        if FORWARDED in record.scope:
            return
        self._log(record)
        if record.operation is not None:
            self._metrics.answered(record.key, record.status, ())

    async def _health(self) -> Response:
        """Live: what Ray Serve starts again when it is not. Whether there is an engine, /ready tells."""
        return JSONResponse({"status": "ok"})

    async def _forward(self, request: Request) -> Response:
        if is_on_admin_port(request.scope["path"]):
            # What changes a server changes all of them.
            answers = await self._answers(await _wired(request), ADMIN_SECONDS)
            return _worst(answers)
        caller, wired = caller_of(request), await _wired(request)
        session = session_of(request.headers, caller.key_name, wired.body)
        engines = self._engines.options(stream=True, **({"session_id": session} if session else {}))
        spend = _spender(caller)
        pieces = engines.stream.remote(wired)
        try:
            self._waiting.inc()
            try:
                async with asyncio.timeout(caller.timeout_seconds):
                    taken = await anext(pieces)
                    request.scope[FORWARDED] = taken
            finally:
                self._waiting.dec()
            assert isinstance(taken, Taken)
            while isinstance(head := await anext(pieces), Spent):
                spend(head.num_tokens)
            assert isinstance(head, Head)
        except BaseException as error:
            cancel(pieces)
            told = _ours(error)
            if isinstance(told, ServerError):
                # The engine can no longer tell of it.
                request.scope.pop(FORWARDED, None)
            if told is error:
                raise
            raise told from error
        return Relay(head, _shown(head, taken.replica), pieces, describe_loss, spend)

    async def _ask_all(self, request: Request) -> Response:
        """Any engine's answer, and where they differ the worst: what is said to be there is there in all of them."""
        return _worst(await self._answers(await _wired(request)))

    async def _models(self, request: Request) -> Response:
        """The models that every engine has: a version that some have not seen yet is not offered yet."""
        answers = await self._answers(await _wired(request))
        if any(answer.head.status != 200 for answer in answers):
            return _worst(answers)
        lists = [json.loads(answer.body) for answer in answers]
        common = set.intersection(*({entry["id"] for entry in body["data"]} for body in lists))
        body = lists[0] | {"data": [entry for entry in lists[0]["data"] if entry["id"] in common]}
        return JSONResponse(body)

    async def _all_metrics(self, request: Request) -> Response:
        """Every engine's metrics and the gateway's own, told apart by the label `replica`."""
        own = self._metrics.exposition() + generate_latest(self._registry)
        pages = {f"gateway-{self._name}": own.decode()}
        try:
            answers = await self._answers(await _wired(request))
        except UnavailableError:
            answers = []
        pages |= {answer.replica: answer.body.decode() for answer in answers}
        return Response(merged(pages), media_type=CONTENT_TYPE_LATEST)

    async def _answers(
        self, request: WireRequest, seconds: float = ASK_ALL_SECONDS
    ) -> Sequence[WholeAnswer]:
        """Of every engine that answers in time. Raises UnavailableError where there is none."""
        try:
            broadcast = self._engines.broadcast("whole", request)
            # Not its results_async: that has all answers or none, and one engine that hangs would silence the others.
            results = await broadcast._fetch_replica_results_async()
        except (RayError, DeploymentUnavailableError) as error:
            raise UnavailableError(NO_ENGINE) from error
        asked = [asyncio.ensure_future(result.get_async()) for result in results]
        if asked:
            await asyncio.wait(asked, timeout=seconds)
        answers = []
        for task in asked:
            if not task.done():
                task.cancel()
            elif not task.cancelled() and task.exception() is None:
                answers.append(task.result())
        if not answers:
            raise UnavailableError(NO_ENGINE)
        return answers


class _Unnamed:
    """Leaves out the header with the request's id where Ray Serve's proxy has given the request one: it sends it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if REQUEST_ID not in dict(scope.get("headers", ())):
            await self._app(scope, receive, send)
            return

        async def unnamed_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [h for h in message["headers"] if h[0] != REQUEST_ID]
            await send(message)

        await self._app(scope, receive, unnamed_send)


async def _wired(request: Request) -> WireRequest:
    kept = [header for header in request.scope["headers"] if header[0] not in NOT_PASSED]
    return WireRequest(
        request.method,
        request.scope["path"],
        request.scope["query_string"],
        tuple(map(tuple, kept)),
        await request.body(),
        _wire_caller(caller_of(request)),
    )


def _wire_caller(caller: Caller) -> WireCaller:
    if caller.key is None:
        return WireCaller(caller.request_id, caller.administration, caller.timeout_seconds)
    key = caller.key
    left = dict(key.quota.headers()).get(b"x-ratelimit-remaining-tokens", b"0")
    return WireCaller(
        caller.request_id,
        caller.administration,
        caller.timeout_seconds,
        key.name,
        key.models,
        key.is_admin,
        key.quota.limits[1],
        int(left),
    )


def _spender(caller: Caller) -> Callable[[int], None]:
    """What is told of the tokens that an engine has used for this caller."""
    return (lambda _: None) if caller.key is None else caller.key.quota.spend_tokens


def _shown(head: Head, replica: str) -> list[tuple[bytes, bytes]]:
    kept = [header for header in head.headers if header[0] not in OWN_HEADERS]
    return [*kept, (b"x-lorachat-replica", replica.encode())]


def _worst(answers: Sequence[WholeAnswer]) -> Response:
    answer = max(answers, key=lambda answer: answer.head.status)
    response = Response(answer.body, answer.head.status)
    response.raw_headers = _shown(answer.head, answer.replica)
    return response


def _ours(error: BaseException) -> BaseException:
    """What the caller is told when an answer fails before its first byte."""
    if isinstance(error, BackPressureError | TimeoutError):
        return OverloadedError("All engines are busy and the queue is full. Try again later.", 2)
    if isinstance(error, asyncio.CancelledError | ServerError):
        return error
    if isinstance(error, RayActorError | TaskCancelledError | DeploymentUnavailableError):
        return UnavailableError(
            "The engine that had this request has failed and is being replaced. Send it again."
        )
    return error


def describe_loss(error: Exception) -> dict[str, Any]:
    """The error event of a stream whose engine has failed."""
    told = _ours(error)
    return errors.describe(told if isinstance(told, Exception) else error)[1]
