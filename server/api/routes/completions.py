"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.api.caller import caller_of
from server.api.completion_answer import CompletionStream, completion, new_readers
from server.api.completions import start_completion
from server.api.openapi import documented
from server.api.routes.respond import read_body, streamed, whole
from server.api.schemas.bodies import Completion
from server.api.schemas.completions import NOT_HONOURED, CompletionRequest
from server.api.service import Service


def completions_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["Completions"])

    @router.post("/v1/completions", **documented(CompletionRequest, Completion, streams=True))
    async def create_completion(request: Request) -> Response:
        """Text that goes on from a prompt, or with `echo` and `logprobs` the likelihood of a text."""
        asked = await read_body(request, service, CompletionRequest, NOT_HONOURED)
        started = await start_completion(service, asked, caller_of(request))
        readers = new_readers(started, echo=bool(asked.echo), num_top=asked.logprobs)
        if not asked.stream:
            body = completion(started, readers, timings=bool(asked.timings))
            return await whole(request, started, body)
        options = asked.stream_options
        formatter = CompletionStream(
            started,
            readers,
            include_usage=options is not None and bool(options.include_usage),
            continuous_usage=options is not None and bool(options.continuous_usage_stats),
            timings=bool(asked.timings),
        )
        return streamed(request, service, started, formatter)

    return router
