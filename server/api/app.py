"""The ASGI application, put together from what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from server.api import errors, openapi
from server.api.guard import Guard
from server.api.metrics import Metrics
from server.api.observer import Observer, Reporter
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
    service: Service,
    policy: Policy | None = None,
    *,
    lifespan: Lifespan | None = None,
    reporters: Sequence[Reporter] = (),
) -> FastAPI:
    """policy: by default nobody is asked for a key. reporters: told of every request when it has ended."""
    app = create_routes(service, lifespan=lifespan)
    add_door(app, policy or Policy(), service.metrics)
    # Added last, so it stands outside of all else.
    app.add_middleware(Observer, reporters=(service.report, *reporters))
    return app


def create_routes(service: Service, *, lifespan: Lifespan | None = None) -> FastAPI:
    """The app without its door: what is behind another's."""
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
    return app


def add_door(app: FastAPI, policy: Policy, metrics: Metrics) -> None:
    app.add_middleware(Guard, policy=policy, metrics=metrics)
    if policy.cors_origins:
        # Outside of the guard: browsers ask before they send a key. Without cookies there are no credentials to allow.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=policy.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
