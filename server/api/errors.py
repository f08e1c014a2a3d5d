"""One table from our exceptions to OpenAI's error bodies, used before the first byte and after it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.api.record import record_of
from server.errors import (
    AuthenticationError,
    BodyTooLargeError,
    ConflictError,
    CrowdedError,
    DeadlineError,
    EngineDeadError,
    EngineError,
    ForbiddenError,
    HeadTooLargeError,
    InvalidRequestError,
    ModelNotFoundError,
    NotServedError,
    OverloadedError,
    RateLimitError,
    ServerError,
    SlowBodyError,
    UnavailableError,
)

log = logging.getLogger("lorachat.api")

# For a caller who has gone before the answer: nobody is there to read it.
CLIENT_CLOSED_REQUEST = 499

# exception -> (status, OpenAI's type, code); the first match counts, so subclasses stand first
_TABLE: tuple[tuple[type[ServerError], int, str, str | None], ...] = (
    (ModelNotFoundError, 404, "invalid_request_error", "model_not_found"),
    (NotServedError, 404, "invalid_request_error", "not_served"),
    (AuthenticationError, 401, "authentication_error", "invalid_api_key"),
    (ConflictError, 409, "invalid_request_error", "conflict"),
    (ForbiddenError, 403, "permission_error", "forbidden"),
    (HeadTooLargeError, 431, "invalid_request_error", "headers_too_large"),
    (BodyTooLargeError, 413, "invalid_request_error", "request_too_large"),
    (SlowBodyError, 408, "invalid_request_error", "body_timeout"),
    (InvalidRequestError, 400, "invalid_request_error", None),
    (RateLimitError, 429, "requests", "rate_limit_exceeded"),
    (OverloadedError, 429, "rate_limit_error", "server_overloaded"),
    (DeadlineError, 504, "server_error", "deadline_exceeded"),
    (CrowdedError, 503, "server_error", "too_many_connections"),
    (UnavailableError, 503, "server_error", "unavailable"),
    (EngineDeadError, 503, "server_error", "engine_dead"),
    (EngineError, 500, "server_error", "engine_error"),
)


def error_response(error: Exception) -> JSONResponse:
    """The HTTP answer for an exception. An unknown one says nothing of itself to the caller."""
    return _response(error, *describe(error))


def _response(error: Exception, status: int, body: dict[str, Any]) -> JSONResponse:
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(error.retry_after)
    elif status in (408, 504):
        # OpenAI's clients would try again at once, and twice: what took too long would be computed three times.
        headers["x-should-retry"] = "false"
        if status == 408:
            headers["Connection"] = "close"  # the rest of the body is not waited for
    elif status == 503:
        headers["Retry-After"] = "2"
    elif status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """(status, body) in OpenAI's shape."""
    for kind, status, type_, code in _TABLE:
        if isinstance(error, kind):
            param = "model" if isinstance(error, ModelNotFoundError) else None
            if isinstance(error, InvalidRequestError):
                return status, _body(str(error), type_, error.param, error.code)
            if isinstance(error, RateLimitError):
                # OpenAI says there which limit it was.
                return status, _body(str(error), error.kind, param, code)
            return status, _body(str(error), type_, param, code)
    log.error("unexpected error", exc_info=error)
    return 500, _body("The server failed on this request.", "server_error", None, "internal_error")


def _body(message: str, type_: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def nothing_there(path: str) -> JSONResponse:
    """The 404 of an address where there is nothing."""
    message = f"There is nothing at {path}. Chat is at POST /v1/chat/completions."
    return JSONResponse(_body(message, "invalid_request_error", None, None), 404)


def install(app: FastAPI, rejected: Callable[[str | None, int], None]) -> None:
    """Make every error of the app come out in one shape, the framework's own included.

    rejected: told the code and status of each.
    """

    async def ours(request: Request, error: Exception) -> JSONResponse:
        status, body = describe(error)  # once: it logs what is unexpected
        code = body["error"]["code"]
        rejected(code, status)
        # By code and kind only: the sentence for the caller may quote the caller.
        record_of(request).error = code or type(error).__name__
        return _response(error, status, body)

    async def framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return nothing_there(request.url.path)
        message = str(error.detail)
        if error.status_code == 405:
            message = f"{request.method} is not allowed at {request.url.path}."
        body = _body(message, "invalid_request_error", None, None)
        return JSONResponse(body, error.status_code, error.headers)

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(ServerError, ours)
    app.add_exception_handler(ClientDisconnect, gone)  # in the middle of its body
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(Exception, ours)
