"""An answer on its way from an engine through the gateway: nothing of it is lost, and its end is always told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from server.api.caller import Administration
from server.errors import RateLimitError
from server.ray_serve.in_process import call, scope_of
from server.ray_serve.meter import Meter
from server.ray_serve.relay import Relay
from server.ray_serve.wire import Head, Spent, WireCaller, WireRequest
from tests.server.live import serve


def called(server: FastAPI, path: str, body: bytes = b"") -> AsyncGenerator[Head | bytes, None]:
    caller = WireCaller("r", Administration.CLOSED)
    request = WireRequest("POST", path, b"q=1", ((b"x-mark", b"m"),), body, caller)
    return call(server, scope_of(request), body)


def app() -> FastAPI:
    app = FastAPI()
    app.state.left = asyncio.Event()

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, Any]:
        body = await request.body()
        return {"body": body.decode(), "q": request.query_params["q"], "mark": request.headers["x-mark"]}  # fmt: skip

    @app.post("/count")
    async def count() -> StreamingResponse:
        async def numbers() -> AsyncIterator[bytes]:
            try:
                for number in range(1000):
                    yield b"%d\n" % number
                    await asyncio.sleep(0)
            finally:
                app.state.left.set()

        return StreamingResponse(numbers())

    @app.post("/wait")
    async def wait(request: Request) -> None:
        try:
            await request.body()
            await request.receive()
        finally:
            app.state.left.set()

    @app.post("/fail")
    async def fail() -> None:
        raise KeyError("x")

    return app


async def collected(given: AsyncIterator[Head | bytes]) -> tuple[Head, list[bytes]]:
    head: Head | None = None
    pieces = []
    async for piece in given:
        if isinstance(piece, Head):
            head = piece
        else:
            pieces.append(piece)
    assert head is not None
    return head, pieces


def test_a_request_reaches_the_app_as_over_a_socket() -> None:
    head, pieces = asyncio.run(collected(called(app(), "/echo", b"hello")))
    assert head.status == 200
    assert json.loads(b"".join(pieces)) == {"body": "hello", "q": "1", "mark": "m"}


def test_a_slow_reader_loses_nothing_and_gets_what_has_come_up_in_one_piece() -> None:
    async def slowly() -> list[bytes]:
        pieces = []
        async for piece in called(app(), "/count"):
            if isinstance(piece, bytes):
                pieces.append(piece)
                await asyncio.sleep(0.005)
        return pieces

    pieces = asyncio.run(slowly())
    assert b"".join(pieces) == b"".join(b"%d\n" % number for number in range(1000))
    assert len(pieces) < 1000


@pytest.mark.parametrize("path", ["/count", "/wait"])
def test_leaving_early_ends_the_work(path: str) -> None:
    async def leave() -> None:
        server = app()
        pieces = called(server, path)

        async def read() -> None:
            async for piece in pieces:
                if isinstance(piece, bytes):
                    return

        reading = asyncio.ensure_future(read())
        await asyncio.wait({reading}, timeout=0.2)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await pieces.aclose()
        await asyncio.wait_for(server.state.left.wait(), 5)

    asyncio.run(leave())


def test_the_apps_own_failure_is_raised() -> None:
    with pytest.raises(KeyError):
        asyncio.run(collected(called(app(), "/fail")))


def describe(error: Exception) -> dict[str, Any]:
    return {"error": {"message": str(error)}}


class Pieces:
    """An engine's answer that ends, or is lost, after what is given."""

    def __init__(self, given: list[bytes | Spent], error: Exception | None = None) -> None:
        self._given = given
        self._error = error
        self.was_cancelled = False

    async def __aiter__(self) -> AsyncIterator[Any]:
        for piece in self._given:
            yield piece
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        self.was_cancelled = True


def relayed(pieces: Pieces, content_type: bytes, spent: list[int] | None = None) -> httpx.Response:
    server = FastAPI()
    head = Head(200, ((b"content-type", content_type),))

    @server.get("/")
    def get() -> Relay:
        return Relay(head, list(head.headers), pieces, describe, ([] if spent is None else spent).append)  # fmt: skip

    with serve(server) as url, httpx.Client() as client:
        return client.get(url)


def test_an_answer_is_passed_on_as_it_is() -> None:
    spent: list[int] = []
    pieces = Pieces([b"data: 1\n\n", Spent(7), b"data: [DONE]\n\n", Spent(2)])
    answer = relayed(pieces, b"text/event-stream", spent)
    assert answer.content == b"data: 1\n\ndata: [DONE]\n\n"
    assert answer.headers["content-type"] == "text/event-stream"
    # What the engine has used is told to the one who keeps the key's quota, and not to the caller.
    assert spent == [7, 2]


def test_a_stream_whose_engine_is_lost_ends_with_an_error_event() -> None:
    pieces = Pieces([b"data: 1\n\n"], RuntimeError("lost"))
    answer = relayed(pieces, b"text/event-stream")
    assert answer.text == 'data: 1\n\ndata: {"error": {"message": "lost"}}\n\ndata: [DONE]\n\n'
    assert pieces.was_cancelled


def test_half_a_body_that_is_no_stream_is_not_passed_off_as_a_whole_one() -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        relayed(Pieces([b'{"a"'], RuntimeError("lost")), b"application/json")


def test_an_engine_counts_a_requests_tokens_against_what_its_key_has_left() -> None:
    meter = Meter(1000, 100)
    meter.check_tokens(90)
    with pytest.raises(RateLimitError, match="Limit 1000"):
        meter.check_tokens(200)
    meter.spend_tokens(30)
    meter.spend_tokens(1)
    assert (meter.take_unsaid(), meter.take_unsaid()) == (31, 0)
    unlimited = Meter(None, 0)
    unlimited.check_tokens(10**9)
    unlimited.spend_tokens(5)
    assert unlimited.take_unsaid() == 5
