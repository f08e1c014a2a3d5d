"""What the benchmark reads from a stream, however the network cuts it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.client import Target, ask, open_client
from benchmarks.stream import read_stream
from tests.server.live import serve


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(content: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": content}}])


ROLE = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
END = event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}])
USAGE = event(
    choices=[],
    usage={
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
)
WHOLE = ROLE + text("Hé") + b": keep-alive\n\n" + text("llo") + END + USAGE + b"data: [DONE]\n\n"


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12).map(sorted))
def test_the_result_does_not_depend_on_how_the_bytes_were_cut(cuts: list[int]) -> None:
    edges = [0, *cuts, len(WHOLE)]
    arrivals = [(float(b), WHOLE[a:b]) for a, b in pairwise(edges)]
    recording = read_stream(arrivals)
    assert (recording.text, recording.finish_reason, recording.error) == ("Héllo", "length", None)
    assert (recording.prompt_tokens, recording.completion_tokens) == (9, 3)
    assert recording.cached_tokens == 4
    # A piece of text came when the line that holds it was whole, and not before.
    ends = [WHOLE.index(piece) + len(piece) - 1 for piece in (text("Hé"), text("llo"))]
    expected = [min(b for b in edges if b >= end) for end in ends]
    assert recording.text_times == expected


def test_a_role_alone_is_not_the_first_token() -> None:
    recording = read_stream([(1.0, ROLE), (2.0, text("a")), (3.0, END)])
    assert recording.text_times == [2.0]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (ROLE + text("a"), "without a finish_reason"),
        (ROLE + event(error={"message": "engine died"}), "engine died"),
        (b"data: {broken\n\n", "cannot be read"),
    ],
)
def test_a_bad_stream_is_an_error_of_that_answer(data: bytes, said: str) -> None:
    assert said in (read_stream([(0.0, data)]).error or "")


def fake_server() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> object:
        body = await request.json()
        if body["model"] == "refuse":
            return JSONResponse({"error": {"message": "no such model"}}, 404)
        assert body["temperature"] == 0
        assert body["stream"] is True
        assert body["lora"] == [{"id": 0, "scale": 1.0}]

        async def slow() -> AsyncIterator[bytes]:
            yield ROLE
            for part in (text("a"), text("b"), END + USAGE + b"data: [DONE]\n\n"):
                await asyncio.sleep(0.1)
                yield part
                if body["model"] == "cut":
                    raise RuntimeError("the connection breaks here")

        return StreamingResponse(slow(), media_type="text/event-stream")

    return app


def test_times_are_those_of_the_wire() -> None:
    async def samples(url: str) -> list[object]:
        async with open_client(url) as client:
            names = ("any", "refuse", "cut")
            extra = {"lora": [{"id": 0, "scale": 1.0}]}
            return [await ask(client, Target(name, extra), [], 8) for name in names]

    with serve(fake_server()) as url:
        good, refused, cut = asyncio.run(samples(url))
    assert good.error is None
    # Lower bounds only: the server slept so long, whatever else the machine did.
    assert good.first_token_seconds >= 0.1
    assert good.token_seconds >= 0.1 / 2 * 0.5
    assert good.tokens == 3
    assert good.ended - good.begun >= 0.3
    assert "404" in refused.error
    assert cut.error is not None
