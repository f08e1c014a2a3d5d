"""The thin HTTP side of the two peers that are libraries: OpenAI's stream, greedy, nothing validated.

Runs in the peers' environments; it imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

# (messages, model, max_tokens) -> pieces of text, then the counts (prompt tokens, completion tokens)
Answer = Callable[[list[dict[str, str]], str, int], AsyncIterator[str | tuple[int, int]]]


def chat_app(answer: Answer) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()

        async def events() -> AsyncIterator[str]:
            async for piece in answer(body["messages"], body["model"], body["max_tokens"]):
                if isinstance(piece, str):
                    if piece:
                        yield _event(choices=[{"index": 0, "delta": {"content": piece}}])
                    continue
                yield _event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
                counts = {"prompt_tokens": piece[0], "completion_tokens": piece[1]}
                yield _event(choices=[], usage=counts)
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def _event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def serve(app: FastAPI, port: int) -> None:
    import uvicorn

    print(f"listening on {port}", file=sys.stderr)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
