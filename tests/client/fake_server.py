"""A real HTTP server that plays the chat server: scripted answers over real sockets.

Which script is played depends on the model that is asked for, so one server serves many tests, and
tests that run at once do not disturb each other.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

MODELS = [
    ("base", "HuggingFaceTB/SmolLM2-135M-Instruct", None),
    ("smalltalk", "smalltalk@20261123-081642-3fa9c1", "base"),
    ("smalltalk@20261123-081642-3fa9c1", "smalltalk@20261123-081642-3fa9c1", "base"),
    ("smalltalk@20261120-174501-77d0ee", "smalltalk@20261120-174501-77d0ee", "base"),
]


@dataclass(frozen=True)
class Script:
    """What one model answers: `parts` are written one by one, `pause_seconds` apart.

    After the parts the stream ends properly, is cut (the connection drops inside the body), or
    hangs until the client goes away. With `status` other than 200 the answer is `body` as JSON.
    """

    parts: tuple[bytes, ...] = ()
    pause_seconds: float = 0.0
    ending: Literal["end", "cut", "hang"] = "end"
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeServer:
    """A running server: its address, its scripts, and what it has seen."""

    scripts: dict[str, Script]
    url: str = ""
    key: str | None = None
    is_ready: bool | None = True  # None: it has no such route
    metrics: str | None = None  # the text of /metrics; None: no such route
    standings: list[dict[str, Any]] | None = None  # what an operator is told; None: closed
    models: list[tuple[str, str, str | None]] = field(default_factory=lambda: list(MODELS))
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)  # models whose reader went away in mid-answer


def chunk(**fields: Any) -> dict[str, Any]:
    """A chunk with the fields that all chunks share."""
    shared = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**shared, **fields}


def event(data: Any) -> bytes:
    """One server-sent event, with characters unescaped, as the strictest reader would meet them."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def answer(tokens: list[str], finish_reason: str = "stop", prompt_tokens: int = 12) -> list[bytes]:
    """The events of a whole answer, one per token, as docs/contracts.md has them."""
    deltas: list[dict[str, Any]] = [{"content": token} for token in tokens]
    deltas[0] = {"role": "assistant", "content": tokens[0]}
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(tokens),
        "total_tokens": prompt_tokens + len(tokens),
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    return [
        *(
            event(chunk(choices=[{"index": 0, "delta": delta, "finish_reason": None}]))
            for delta in deltas
        ),
        event(chunk(choices=[{"index": 0, "delta": {}, "finish_reason": finish_reason}])),
        event(chunk(choices=[], usage=usage)),
        DONE,
    ]


def error(message: str, kind: str = "server_error", code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def create_app(server: FakeServer) -> FastAPI:
    app = FastAPI()

    async def play(model: str, script: Script) -> AsyncIterator[bytes]:
        try:
            for number, part in enumerate(script.parts):
                if number:
                    await asyncio.sleep(script.pause_seconds)
                yield part
            if script.ending == "hang":
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            server.gone.append(model)
            raise
        if script.ending == "cut":
            raise ConnectionResetError("cut on purpose")

    @app.get("/ready")
    def ready() -> Response:
        if server.is_ready is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        if server.is_ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "loading"}, 503)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(server.metrics, 200 if server.metrics is not None else 404)

    @app.get("/admin/adapters")
    def adapters() -> Response:
        if server.standings is None:
            return JSONResponse(error("closed", "permission_error"), 403)
        return JSONResponse({"object": "list", "data": server.standings})

    @app.get("/v1/models")
    def models(request: Request) -> Response:
        if server.key and request.headers.get("authorization") != f"Bearer {server.key}":
            return JSONResponse(error("wrong key", "authentication_error"), 401)
        entries = [
            {
                "id": name,
                "object": "model",
                "created": 1,
                "owned_by": "lorachat",
                "root": root,
                "parent": parent,
                "max_model_len": 2048,
            }
            for name, root, parent in server.models
        ]
        return JSONResponse({"object": "list", "data": entries})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        server.requests.append(body)
        server.headers.append(dict(request.headers))
        if server.key and request.headers.get("authorization") != f"Bearer {server.key}":
            return JSONResponse(error("wrong key", "authentication_error"), 401)
        script = server.scripts.get(body["model"])
        if script is None:
            return JSONResponse(error("no such model", code="model_not_found"), 404)
        if script.status != 200:
            return JSONResponse(script.body, script.status, script.headers)
        return StreamingResponse(play(body["model"], script), media_type="text/event-stream")

    return app


@contextmanager
def running(server: FakeServer, port: int = 0) -> Iterator[FakeServer]:
    """Serve on 127.0.0.1 in a thread for as long as the block lasts."""
    config = uvicorn.Config(
        create_app(server), "127.0.0.1", port, log_level="critical", timeout_graceful_shutdown=1
    )
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    wait_until(lambda: web.started, "the fake server to start")
    server.url = f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        web.should_exit = True
        thread.join(timeout=10)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
