"""POST /v1/responses."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.api.caller import caller_of
from server.api.chat import start_chat
from server.api.openapi import documented
from server.api.response_answer import ResponseBuilder, ResponseStream, response
from server.api.response_input import renamed, to_chat
from server.api.routes.respond import read_body, streamed, whole
from server.api.schemas.bodies import ResponseBody
from server.api.schemas.responses import NOT_HONOURED, ResponseRequest
from server.api.service import Service
from server.errors import InvalidRequestError


def responses_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["Responses"])

    @router.post("/v1/responses", **documented(ResponseRequest, ResponseBody, streams=True))
    async def create_response(request: Request) -> Response:
        """The same answers as chat completions, in the form of OpenAI's Responses API. Nothing is stored."""
        asked = await read_body(request, service, ResponseRequest, NOT_HONOURED)
        try:
            started = await start_chat(service, to_chat(asked), caller_of(request), "resp_")
            builder = ResponseBuilder(started.run, started.readers[0], asked)
            if asked.stream:
                return streamed(request, service, started.run, ResponseStream(builder))
            return await whole(request, started.run, response(started.run, builder))
        except InvalidRequestError as error:
            raise renamed(error) from None

    return router
