"""The ASGI application, put together from what it is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from server.api import errors, openapi
from server.api.guard import Guard
from server.api.policy import Policy
from server.api.routes.admin import admin_router
from server.api.routes.chat import chat_router
from server.api.routes.completions import completions_router
from server.api.routes.models import models_router
from server.api.routes.operations import operations_router
from server.api.routes.responses import responses_router
from server.api.routes.tokens import tokens_router
from server.api.service import Service

EXPOSED_HEADERS = (
    "x-request-id",
    "retry-after",
    *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
)  # fmt: skip
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    service: Service, policy: Policy | None = None, *, lifespan: Lifespan | None = None
) -> FastAPI:
    """policy: by default nobody is asked for a key."""
    policy = policy or Policy()
    app = FastAPI(title="lorachat", lifespan=lifespan, docs_url=None, redoc_url=None)
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
    app.add_middleware(Guard, policy=policy, metrics=service.metrics)
    if policy.cors_origins:
        # Outside of the guard: browsers ask before they send a key. Without cookies there are no credentials to allow.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=policy.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    return app
