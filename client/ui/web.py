"""Serves the page: one small ASGI application around Gradio's, with a health route and strict headers."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.api import ChatClient
from client.ui.page import STYLE, build_page
from client.ui.theme import THEME

# The page may load nothing from anywhere else. That keeps it working without a network, and it
# keeps an answer that contains ![](https://elsewhere/?text) from carrying the conversation away.
# Gradio's own front end needs inline scripts and styles, and compiles some of its templates.
_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "media-src 'self' data: blob:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class SecurityHeaders:
    """ASGI middleware that puts the headers above on every response, streams included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def create_app(server: str, api_key: str | None = None) -> FastAPI:
    """The application. Raises ValueError if the address or the key cannot be one."""
    client = ChatClient(server, api_key)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    page = build_page(client)
    # Without this each kind of event would be served to one visitor at a time.
    page.queue(default_concurrency_limit=None, api_open=False)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=THEME,
        # As a style sheet of the document: what Gradio takes as `css` reaches its inner column only.
        head=f"<style>{STYLE.read_text(encoding='utf-8')}</style>",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    app.add_middleware(SecurityHeaders)
    return app


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to log it: not the open pages that end with the server, each an error to uvicorn."""
    cause = record.exc_info[1] if record.exc_info else None
    return not (
        isinstance(cause, asyncio.CancelledError)
        or "timeout graceful shutdown exceeded" in record.getMessage()
    )


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until interrupted or terminated."""
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    config = uvicorn.Config(
        app,
        log_level="warning",
        # Open pages hold event streams that never end by themselves.
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])
