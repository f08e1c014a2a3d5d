"""The two ways to answer with a run: as a stream, or whole. Both stop computing when the caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from server.api.errors import CLIENT_CLOSED_REQUEST
from server.api.event_stream import EventStream, Formatter, Source
from server.api.record import record_of
from server.api.schemas.parse import NotHonoured, parse, unknown_fields
from server.api.service import Service

Body = TypeVar("Body", bound=BaseModel)


async def read_body(
    request: Request, service: Service, kind: type[Body], not_honoured: NotHonoured
) -> Body:
    """The checked body; its unknown fields are counted. Raises InvalidRequestError."""
    body = parse(kind, await request.body(), not_honoured)
    record = record_of(request)
    record.asked_model = getattr(body, "model", None)
    record.is_stream = bool(getattr(body, "stream", False))
    service.metrics.unknown_fields(set(unknown_fields(body)))
    return body


def streamed(request: Request, service: Service, source: Source, formatter: Formatter) -> Response:
    record_of(request).runs = source.runs
    return EventStream(source, formatter, keepalive_seconds=service.keepalive_seconds)


async def whole(
    request: Request, source: Source, body: Coroutine[Any, Any, dict[str, Any]]
) -> Response:
    """body: folds the source's events. Raises the error of a failed run."""
    record_of(request).runs = source.runs
    work = asyncio.ensure_future(body)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return JSONResponse(work.result())
    finally:
        source.close()
        for task in (work, gone):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    """Returns when the connection closes. The body has been read, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
