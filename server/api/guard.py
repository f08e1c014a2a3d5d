"""The door: keys, ports, browsers, rates, sizes and times, checked before anything of a request is read or believed."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.admin_access import administration, is_on_admin_port
from server.api.browsers import check_browser
from server.api.caller import STATE, Caller, new_request_id
from server.api.deadline import timeout_seconds
from server.api.errors import describe, error_response, nothing_there
from server.api.keys import Key
from server.api.metrics import Metrics
from server.api.policy import MAY_ASK, Policy
from server.errors import (
    AuthenticationError,
    BodyTooLargeError,
    CrowdedError,
    ForbiddenError,
    HeadTooLargeError,
    OverloadedError,
    ServerError,
    SlowBodyError,
)

OPEN_PATHS = frozenset({"/health", "/ready"})
# Answered on any connection, or a crowd would look like a fault.
ALWAYS = OPEN_PATHS | {"/metrics"}
# A large body is refused, or its prompt read, within about so long.
BODIES_RETRY_SECONDS = 2
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class _Body:
    """What has arrived of one request's."""

    num_bytes: int = 0


class Guard:
    """ASGI middleware. It also names the request (x-request-id, the caller's own if it sent a fit one) and counts its
    outcome."""

    def __init__(self, app: ASGIApp, policy: Policy, metrics: Metrics) -> None:
        self._app = app
        self._policy = policy
        self._metrics = metrics
        self._held_bytes = 0  # bodies of all requests in work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        key: Key | None = None

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    *(key.quota.headers() if key is not None else ()),
                ]
                self._metrics.responded(scope["method"], handler_of(scope), message["status"])
            await send(message)

        if self._is_elsewhere(scope):
            await nothing_there(scope["path"])(scope, receive, named_send)
            return
        try:
            self._check_head(scope)
            key = self._key(scope, headers)
            scope[STATE] = self._caller(scope, headers, key, request_id)
            # After the key: who has none is not told how full it is.
            self._check_place(scope)
            if key is not None and scope["method"] == "POST":
                key.quota.take_request()
            self._check_length(headers)
        except ServerError as error:
            response = error_response(error)
            self._metrics.rejected(describe(error)[1]["error"]["code"], response.status_code)
            await response(scope, receive, named_send)
            return
        body = _Body()
        try:
            await self._app(scope, self._bounded(receive, body), named_send)
        finally:
            self._held_bytes -= body.num_bytes

    def _is_elsewhere(self, scope: Scope) -> bool:
        """Whether the path is answered at the other port only. (For admin routes, require_admin says so.)"""
        port = self._policy.admin_port
        if port is None:
            return False
        if self._is_on_admin_port(scope):
            return not is_on_admin_port(scope["path"])
        return port.takes_metrics and scope["path"] == "/metrics"

    def _is_on_admin_port(self, scope: Scope) -> bool:
        """By the socket that the connection came to, which no caller can forge."""
        port, server = self._policy.admin_port, scope.get("server")
        return port is not None and server is not None and server[1] == port.number

    def _key(self, scope: Scope, headers: Headers) -> Key | None:
        """The key that the request came with. Raises AuthenticationError or ForbiddenError."""
        keyring = self._policy.keyring
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        given = credential.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        key = keyring.find(given) if given else None
        if key is not None or scope["path"] in OPEN_PATHS:
            return key
        # What the admin port answers on this machine is the admin routes' to refuse: there may be no key for it.
        if keyring.is_open or (self._is_on_admin_port(scope) and not keyring.has_admin):
            check_browser(headers, self._policy.cors_origins, self._policy.trusted_hosts)
            return None
        raise AuthenticationError(
            "No valid API key. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
        )

    def _caller(self, scope: Scope, headers: Headers, key: Key | None, request_id: str) -> Caller:
        if key is not None and key.models is not None and scope["path"] == "/metrics":
            raise ForbiddenError("This key is for certain models; metrics tell of all of them.")
        return Caller(
            request_id,
            key,
            administration(
                self._policy.keyring,
                key,
                has_port=self._policy.admin_port is not None,
                on_port=self._is_on_admin_port(scope),
            ),
            timeout_seconds(headers, self._policy.request_seconds),
        )

    def _check_head(self, scope: Scope) -> None:
        # h11 bounds a head that is not whole yet; one that comes in one piece may be much larger.
        policy, lines = self._policy, scope["headers"]
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in lines)
        if size > policy.max_head_bytes or len(lines) > policy.max_headers:
            raise HeadTooLargeError(
                f"The request's address and headers are larger than {policy.max_head_bytes} bytes, or more than"
                f" {policy.max_headers}."
            )

    def _check_place(self, scope: Scope) -> None:
        may_ask = scope.get("state", {}).get(MAY_ASK)
        if may_ask is not None and scope["path"] not in ALWAYS and not may_ask():
            raise CrowdedError(
                "Too many connections to this server are open. Try again in a moment, or use one connection for"
                " several requests."
            )

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._policy.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The request body is larger than this server's limit of {self._policy.max_body_bytes} bytes."
        )

    def _bounded(self, receive: Receive, body: _Body) -> Receive:
        """receive, with a limit to what arrives, here and in all requests, and to the time that takes."""
        is_whole = False
        deadline = asyncio.get_running_loop().time() + self._policy.stall_seconds

        async def bounded() -> Message:
            # Chunked bodies announce no length, so what really arrives is counted too.
            nonlocal is_whole
            if is_whole:
                return await receive()  # waits for the caller to leave
            try:
                # One deadline for all of it: a byte now and then must not push it back.
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise SlowBodyError(
                    f"The request body did not arrive within {self._policy.stall_seconds:g} seconds."
                ) from None
            arrived = len(message.get("body", b""))
            body.num_bytes += arrived
            self._held_bytes += arrived
            if body.num_bytes > self._policy.max_body_bytes:
                raise self._too_large()
            if self._held_bytes > self._policy.max_bodies_bytes:
                raise OverloadedError(
                    "The bodies of all requests in work are larger than this server holds at a time. Try again later.",
                    retry_after=BODIES_RETRY_SECONDS,
                )
            is_whole = not message.get("more_body", False)
            return message

        return bounded


def handler_of(scope: Scope) -> str:
    """The route's own path: paths are callers' words, and metrics must not grow with them."""
    route = scope.get("route")
    return getattr(route, "path", None) or "(none)"
