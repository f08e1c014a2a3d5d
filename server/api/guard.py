"""The door: API keys and body size, checked before anything of the request is read or believed."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import error_response
from server.errors import AuthenticationError, BodyTooLargeError

OPEN_PATHS = frozenset({"/health", "/ready"})


class Guard:
    """ASGI middleware. keys: every accepted API key; none at all means no key is asked for."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], max_body_bytes: int) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["path"] not in OPEN_PATHS and not self._admits(headers):
            error = AuthenticationError(
                "No valid API key. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
            )
            await error_response(error)(scope, receive, send)
            return
        too_large = BodyTooLargeError(
            f"The request body is larger than this server's limit of {self._max_body_bytes} bytes."
        )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            await error_response(too_large)(scope, receive, send)
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

        await self._app(scope, counting_receive, send)

    def _admits(self, headers: Headers) -> bool:
        if not self._keys:
            return True
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        given = credential.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, in constant time, so that timing tells nothing about any of them.
        matches = [hmac.compare_digest(given.encode(), key) for key in self._keys]
        return any(matches)
