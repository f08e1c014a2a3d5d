"""The ASGI application, put together from what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from server.api import errors, openapi
from server.api.guard import Guard
from server.api.observer import Observer, Reporter
from server.api.routes.chat import chat_router
from server.api.routes.completions import completions_router
from server.api.routes.models import models_router
from server.api.routes.operations import operations_router
from server.api.routes.responses import responses_router
from server.api.routes.tokens import tokens_router
from server.api.service import Service

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    service: Service,
    *,
    api_keys: Sequence[str] = (),
    max_body_bytes: int = 4 * 2**20,
    lifespan: Lifespan | None = None,
    reporters: Sequence[Reporter] = (),
) -> FastAPI:
    """reporters: told of every request when it has ended, beside the metrics."""
    app = FastAPI(title="lorachat", lifespan=lifespan, docs_url=None, redoc_url=None)
    errors.install(app, service.metrics.rejected)
    for make_router in (
        chat_router,
        completions_router,
        responses_router,
        tokens_router,
        models_router,
        operations_router,
    ):
        app.include_router(make_router(service))
    openapi.install(app)
    app.add_middleware(Guard, keys=api_keys, max_body_bytes=max_body_bytes, metrics=service.metrics)
    # Added last, so it stands outside of all else.
    app.add_middleware(Observer, reporters=(service.report, *reporters))
    return app
