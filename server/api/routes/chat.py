"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.api.caller import caller_of
from server.api.chat import start_chat
from server.api.chat_completion import chat_completion
from server.api.chat_stream import ChatStream
from server.api.openapi import documented
from server.api.routes.respond import read_body, streamed, whole
from server.api.schemas.bodies import ChatCompletion
from server.api.schemas.chat import NOT_HONOURED, ChatRequest
from server.api.service import Service


def chat_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["Chat"])

    @router.post("/v1/chat/completions", **documented(ChatRequest, ChatCompletion, streams=True))
    async def create_chat_completion(request: Request) -> Response:
        """An answer to a conversation, whole or streamed."""
        chat = await read_body(request, service, ChatRequest, NOT_HONOURED)
        started = await start_chat(service, chat, caller_of(request))
        if not chat.stream:
            body = chat_completion(started.run, started.readers, timings=bool(chat.timings))
            return await whole(request, started.run, body)
        options = chat.stream_options
        formatter = ChatStream(
            started.run,
            started.readers,
            include_usage=options is not None and bool(options.include_usage),
            continuous_usage=options is not None and bool(options.continuous_usage_stats),
            timings=bool(chat.timings),
        )
        return streamed(request, service, started.run, formatter)

    return router
