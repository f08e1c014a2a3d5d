"""The ASGI application, put together from what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from server.api import errors, openapi
from server.api.admin_access import AdminAccess
from server.api.guard import Guard
from server.api.routes.admin import admin_router
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
    admin_key: str | None = None,
    max_body_bytes: int = 4 * 2**20,
    lifespan: Lifespan | None = None,
) -> FastAPI:
    app = FastAPI(title="lorachat", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.admin = AdminAccess(is_open=not api_keys, key=admin_key)
    errors.install(app, service.metrics.rejected)
    for make_router in (
        chat_router,
        completions_router,
        responses_router,
        tokens_router,
        models_router,
        operations_router,
        admin_router,
    ):
        app.include_router(make_router(service))
    openapi.install(app)
    app.add_middleware(Guard, keys=api_keys, max_body_bytes=max_body_bytes, metrics=service.metrics)
    return app
