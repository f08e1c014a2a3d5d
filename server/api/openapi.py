"""The OpenAPI document: what the routes' own bodies are, which statuses there are, and examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api.docs_page import docs_page
from server.api.schemas.bodies import ErrorBody
from server.api.schemas.examples import EXAMPLES
from server.version import VERSION

_REF = "#/components/schemas/{model}"
_STATUSES = {
    400: "A field is wrong; `error.param` names it.",
    401: "No valid API key.",
    403: "Not for this caller.",
    404: "No such model, or nothing at this address.",
    408: "The body did not arrive in time.",
    413: "The body is over the limit.",
    431: "Address and headers are over the limit.",
    429: "The queue is full, or the key has used up what it may; `Retry-After` says when to come back.",
    500: "The model failed on this request.",
    503: "The model is loading, or the server is going away.",
    504: "The request was not finished within its time.",
}
# One event of the stream; `data` is a JSON object as text, or [DONE].
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_requests: dict[str, type[BaseModel]] = {}


def documented(
    request: type[BaseModel] | None,
    response: type[BaseModel] | None,
    *,
    streams: bool = False,
    not_found: bool = False,
) -> dict[str, Any]:
    """Arguments for a route. Routes read their bodies themselves, so FastAPI cannot know of them."""
    extra: dict[str, Any] = {}
    statuses = [401, 403, 500, 503] + ([404] if not_found else [])
    if request is not None:
        _requests[request.__name__] = request
        media = {
            "schema": {"$ref": _REF.format(model=request.__name__)},
            "examples": {
                title: {"value": value}
                for title, value in EXAMPLES.get(request.__name__, {}).items()
            },
        }
        extra["requestBody"] = {"required": True, "content": {"application/json": media}}
        statuses = sorted(_STATUSES)
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": _STATUSES[status]} for status in statuses
    }
    if response is not None and response.__name__ == "Status":
        responses[503] = {"model": response, "description": "Not now."}
    if streams:
        responses[200] = {
            "content": {"text/event-stream": {"schema": _EVENT}},
            "description": "One JSON object, or with `stream` server-sent events.",
        }
    return {"response_model": response, "responses": responses, "openapi_extra": extra}


def documented_text(media_type: str) -> dict[str, Any]:
    """Arguments for a route that answers with text."""
    responses: dict[int | str, dict[str, Any]] = {
        200: {"content": {media_type.partition(";")[0]: {"schema": {"type": "string"}}}},
        401: {"model": ErrorBody, "description": _STATUSES[401]},
    }
    return {"response_model": None, "responses": responses, "response_class": PlainTextResponse}


def install(app: FastAPI) -> None:
    """Make app.openapi() tell the whole truth."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title="lorachat",
                version=VERSION,
                description="Chat models and their LoRA adapters on a CPU, over OpenAI's API.",
                routes=app.routes,
            )
            kinds = [(kind, "validation") for kind in _requests.values()]
            _, schemas = models_json_schema(kinds, ref_template=_REF)  # type: ignore[arg-type]
            components = document.setdefault("components", {})
            components.setdefault("schemas", {}).update(schemas.get("$defs", {}))
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            _drop_validation_errors(document)
            document["security"] = [{}, {"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        # FastAPI's own page loads its script from another server, which learns who reads it.
        return HTMLResponse(docs_page(openapi(), str(request.base_url).rstrip("/")))


def _drop_validation_errors(document: dict[str, Any]) -> None:
    """FastAPI promises its own 422 for path parameters; here every string is a good one."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
