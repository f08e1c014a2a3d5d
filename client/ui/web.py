"""Serves the page: one small ASGI application around Gradio's, with routes of its own and strict headers."""

import asyncio
import base64
import binascii
import logging
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.api import ChatClient
from client.ui.markdown import code_style
from client.ui.page import build_page
from client.ui.routes import PREFIX, build_routes
from client.ui.theme import THEME
from client.votes import VoteFile

STATIC = Path(__file__).with_name("static")
# The page may load nothing from anywhere else. That keeps it working without a network, and it
# keeps an answer from carrying the conversation away. Gradio's own front end needs inline scripts
# and styles, and compiles some of its templates.
_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "media-src 'self' data: blob:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Runs before the page: what Gradio's events call on, as a promise. All addresses are relative, so that the
# page also works below a path of another server.
_HEAD = """<style>{style}</style>
<link rel="stylesheet" href="lorachat/static/style.css">
<script>window.lorachat = import(new URL("lorachat/static/main.js", document.baseURI));</script>"""


@dataclass(frozen=True, slots=True)
class Options:
    """What the page needs to know. `login` is (user, password), asked for by this program itself."""

    server: str
    api_key: str | None = None
    adapters: Path | None = None
    votes: Path = Path("votes.jsonl")
    login: tuple[str, str] | None = None


class SecurityHeaders:
    """ASGI middleware that puts the headers above on every response that has none of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Login:
    """ASGI middleware: HTTP Basic authentication for everything but /health."""

    def __init__(self, app: ASGIApp, user: str, password: str) -> None:
        self._app = app
        self._expected = f"{user}:{password}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") == "/health" or self._is_known(scope):
            await self._app(scope, receive, send)
            return
        answer = PlainTextResponse(
            "This page asks for a user and a password.",
            401,
            {"WWW-Authenticate": 'Basic realm="lorachat", charset="UTF-8"'},
        )
        await answer(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        scheme, _, encoded = Headers(scope=scope).get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return False
        return scheme.lower() == "basic" and secrets.compare_digest(given, self._expected)


def create_app(options: Options) -> FastAPI:
    """The application. Raises ValueError if the address or the key cannot be one."""
    client = ChatClient(options.server, options.api_key)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    app.include_router(build_routes(client, options.adapters, VoteFile(options.votes)))
    app.mount(f"{PREFIX}/static", StaticFiles(directory=STATIC))
    page = build_page(client)
    page.queue(api_open=False)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=THEME,
        head=_HEAD.format(style=code_style()),
        favicon_path=str(STATIC / "favicon.svg"),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    if options.login is not None:
        app.add_middleware(Login, *options.login)
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
