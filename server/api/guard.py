"""The door: API keys and body size, checked before anything of the request is read or believed."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.caller import STATE, Caller, key_id, new_request_id
from server.api.errors import describe, error_response
from server.api.metrics import Metrics
from server.errors import AuthenticationError, BodyTooLargeError, RequestError

OPEN_PATHS = frozenset({"/health", "/ready"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Guard:
    """ASGI middleware. keys: every accepted API key; none at all means no key is asked for.

    It also names the request (x-request-id, the caller's own if it sent a fit one) and counts its outcome.
    """

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], max_body_bytes: int, metrics: Metrics
    ) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._key_ids = [key_id(key) for key in keys]
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
                self._metrics.responded(scope["method"], _handler(scope), message["status"])
            await send(message)

        caller = self._caller(headers)
        if caller is None and scope["path"] not in OPEN_PATHS:
            error = AuthenticationError(
                "No valid API key. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
            )
            await self._refuse(error, scope, receive, named_send)
            return
        scope[STATE] = Caller(caller or "", request_id)
        too_large = BodyTooLargeError(
            f"The request body is larger than this server's limit of {self._max_body_bytes} bytes."
        )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._max_body_bytes:
            await self._refuse(too_large, scope, receive, named_send)
            return
        received = 0

        async def counting_receive() -> Message:
            # Chunked bodies announce no length, so what really arrives is counted too.
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise too_large
            return message

        await self._app(scope, counting_receive, named_send)

    async def _refuse(
        self, error: RequestError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response = error_response(error)
        self._metrics.rejected(describe(error)[1]["error"]["code"], response.status_code)
        await response(scope, receive, send)

    def _caller(self, headers: Headers) -> str | None:
        """The id of the key that the request came with, or None if it came without a valid one."""
        if not self._keys:
            return ""
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        given = credential.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, in constant time, so that timing tells nothing about any of them.
        matches = [hmac.compare_digest(given.encode(), key) for key in self._keys]
        found = [key_id for key_id, matched in zip(self._key_ids, matches, strict=True) if matched]
        return found[0] if found else None


def _handler(scope: Scope) -> str:
    """The route's own path: paths are callers' words, and metrics must not grow with them."""
    route = scope.get("route")
    return getattr(route, "path", None) or "(none)"
