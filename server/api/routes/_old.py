"""The endpoints. Each checks, asks the engine, and hands the events on."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from server.api.errors import CLIENT_CLOSED_REQUEST
from server.api.schemas import ChatCompletion, ModelBody, ModelList, parse_chat_request
from server.api.service import Service
from server.api.sse import Answer, ChatStream, completion
from server.engine.engine import Generation
from server.errors import InvalidRequestError, ModelNotFoundError
from server.types import GenerationRequest, SamplingParams

log = logging.getLogger("lorachat.api")


def make_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.api_route("/health", methods=["GET", "HEAD"])
    def health() -> JSONResponse:
        """Live: the process can serve, or is on its way to. Red means: restart me."""
        failure = service.failure
        if failure is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "failed", "reason": failure}, 503)

    @router.api_route("/ready", methods=["GET", "HEAD"])
    def ready() -> JSONResponse:
        """Whether a chat sent now would be answered."""
        status = service.status
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    def listed() -> list[ModelBody]:
        catalogue = service.catalogue
        return [
            ModelBody(
                id=info.id,
                created=info.created,
                root=info.root,
                parent=info.parent,
                max_model_len=catalogue.max_context,
            )
            for info in catalogue.list()
        ]

    @router.get("/v1/models")
    def models() -> ModelList:
        return ModelList(data=listed())

    @router.get("/v1/models/{name:path}")
    def model(name: str) -> ModelBody:
        bodies = listed()
        for body in bodies:
            if body.id == name:
                return body
        raise ModelNotFoundError(name, [body.id for body in bodies if "@" not in body.id])

    @router.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(request: Request) -> Response:
        begun = time.perf_counter()
        chat = parse_chat_request(await request.body())
        model = service.catalogue.find(chat.model)
        n = chat.n or 1
        if n > service.max_choices:
            raise InvalidRequestError(
                f"'n': this server gives at most {service.max_choices} choices (got {n}).",
                param="n",
            )
        # Rendering and tokenising a long conversation takes time: not on the event loop.
        messages = [message.to_message() for message in chat.messages]
        prompt_ids = await asyncio.to_thread(model.encode_chat, messages)
        limit = chat.token_limit
        if limit is None:
            limit = service.default_max_tokens(len(prompt_ids))
        generation = service.engine.submit(
            GenerationRequest(
                id=f"chatcmpl-{secrets.token_hex(12)}",
                model=model,
                prompt_ids=tuple(prompt_ids),
                params=SamplingParams(
                    temperature=1.0 if chat.temperature is None else chat.temperature,
                    top_p=1.0 if chat.top_p is None else chat.top_p,
                    seed=secrets.randbits(63) if chat.seed is None else chat.seed,
                    max_tokens=limit,
                    stop=chat.stop_strings,
                ),
                n=n,
            )
        )
        answer = Answer(
            id=generation.request.id,
            model=model.id,
            fingerprint=service.catalogue.fingerprint,
            prompt_tokens=len(prompt_ids),
            n=n,
        )
        headers = {"x-request-id": answer.id}
        if chat.stream:
            options = chat.stream_options
            return ChatStream(
                generation,
                answer,
                include_usage=options is not None and bool(options.include_usage),
                keepalive_seconds=service.keepalive_seconds,
                headers=headers,
                on_end=lambda: _log(answer, generation, begun),
            )
        try:
            body = await _unless_disconnected(request, generation, answer)
        finally:
            generation.cancel()
            _log(answer, generation, begun)
        if body is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return JSONResponse(body.model_dump(), headers=headers)

    return router


async def _unless_disconnected(
    request: Request, generation: Generation, answer: Answer
) -> ChatCompletion | None:
    """The whole answer, or None as soon as the caller has gone."""
    work = asyncio.ensure_future(completion(generation, answer))
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        for task in (work, gone):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    """Returns when the connection closes. The body has been read, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _log(answer: Answer, generation: Generation, begun: float) -> None:
    """One line per request; never its text."""
    now = time.perf_counter()
    first = answer.first_token_at
    outcome = "finished" if generation.is_finished else "cancelled"
    if answer.has_failed:
        outcome = "failed"
    log.info(
        "%s model=%s prompt_tokens=%d completion_tokens=%d outcome=%s seconds=%.3f first_token_seconds=%s",
        answer.id,
        answer.model,
        answer.prompt_tokens,
        answer.completion_tokens,
        outcome,
        now - begun,
        f"{first - begun:.3f}" if first is not None else "-",
    )
