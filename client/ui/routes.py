"""What the page's own scripts ask for, below /lorachat: answers, HTML, votes, panels, reports.

Gradio is not involved. The browser's API key comes in a header, is used for that request, and kept nowhere.
"""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Header, HTTPException, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from client.api import ChatClient
from client.errors import ChatError, ErrorKind
from client.metrics import History, parse
from client.types import ChatRequest, Message, Sampling
from client.ui import panels
from client.ui.answer_lines import answer_lines, failed_line
from client.ui.catalog import Catalog, look
from client.ui.differences import differences
from client.ui.markdown import to_html
from client.ui.prompts import prompt_set
from client.volume import Version, read_versions, report_path
from client.votes import Vote, VoteFile

PREFIX = "/lorachat"
_HISTORY_SECONDS = 180.0
# Whoever looks, the server is asked for its metrics at most this often.
_SAMPLE_SECONDS = 1.0
# A report is a page of its own origin that can run and load nothing.
_REPORT_POLICY = (
    "sandbox allow-popups; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
)

Key = Annotated[str | None, Header(alias="x-lorachat-key")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Turn(_Body):
    role: Literal["system", "user", "assistant"]
    content: str

    def message(self) -> Message:
        return Message(self.role, self.content)


class SamplingBody(_Body):
    """The settings by the names of `client.types.Sampling`; the server judges their values."""

    temperature: float
    top_p: float
    max_tokens: int
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def sampling(self) -> Sampling:
        return Sampling(**self.model_dump())


class AnswerBody(_Body):
    model: str
    messages: tuple[Turn, ...]
    sampling: SamplingBody


class TextsBody(_Body):
    texts: tuple[str, ...] = Field(max_length=2000)


class PairBody(_Body):
    left: str
    right: str


class VoteBody(_Body):
    prompt: tuple[Turn, ...]
    models: tuple[str, str]
    answers: tuple[str, str]
    verdict: Literal["left", "right", "tie", "neither"]
    sampling: SamplingBody

    def vote(self) -> Vote:
        return Vote(
            [turn.message() for turn in self.prompt],
            self.models,
            self.answers,
            self.verdict,
            self.sampling.sampling(),
        )


def build_routes(client: ChatClient, volume: Path | None, votes: VoteFile) -> APIRouter:
    """All routes. `volume` None: there is none here."""
    router = APIRouter(prefix=PREFIX)
    history = History(_HISTORY_SECONDS)

    def keyed(key: str | None) -> ChatClient:
        try:
            return client.with_key(key)
        except ValueError as error:
            raise ChatError(
                ErrorKind.UNAUTHORIZED,
                f"{str(error)[:1].upper()}{str(error)[1:]}.",
                "Enter it again under Settings.",
            ) from error

    def versions() -> list[Version] | None:
        try:
            return None if volume is None else read_versions(volume)
        except OSError:
            return None

    @router.post("/answers")
    async def answers(body: AnswerBody, key: Key = None) -> Response:
        async def lines() -> AsyncIterator[str]:
            try:
                asked = keyed(key)
                if not body.model:
                    raise (await look(asked)).why_no_model
            except ChatError as error:
                yield failed_line(error)
                return
            messages = tuple(turn.message() for turn in body.messages)
            request = ChatRequest(body.model, messages, body.sampling.sampling())
            async with aclosing(answer_lines(asked, request)) as written:
                async for line in written:
                    yield line

        # Buffering on the way would turn a stream into one late answer.
        return StreamingResponse(
            lines(),
            media_type="application/x-ndjson",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @router.post("/html")
    def html(body: TextsBody) -> list[str]:
        return [to_html(text) for text in body.texts]

    @router.post("/differences")
    def compare(body: PairBody) -> dict[str, str | float]:
        try:
            left, right, common = differences(body.left, body.right)
        except ValueError as error:
            raise HTTPException(413, str(error)) from error
        return {"left": left, "right": right, "common": common}

    @router.post("/votes")
    def vote(body: VoteBody) -> dict[str, str]:
        try:
            votes.add(body.vote())
        except OSError as error:
            raise HTTPException(
                507,
                f"The vote could not be written to {votes.path}: {error.strerror or error}. "
                "Start the client with --votes and a file that it may write.",
            ) from error
        return {"file": str(votes.path)}

    @router.get("/prompts")
    def prompts(model: str = "") -> dict[str, str | tuple[str, ...]]:
        source, asked = prompt_set(versions() or [], model)
        return {"source": source, "prompts": asked}

    @router.get("/panels/status")
    async def status(key: Key = None) -> Response:
        measured = None
        try:
            asked = keyed(key)
            catalog = await look(asked)
            if catalog.error is None:
                measured = await _measure(asked, history)
            else:
                history.clear()
        except ChatError as error:
            catalog = Catalog(error=error)
        page = panels.status_page(client.server, catalog, measured, _HISTORY_SECONDS)
        return HTMLResponse(page)

    @router.get("/panels/adapters")
    async def adapters(key: Key = None) -> Response:
        try:
            asked = keyed(key)
            catalog = await look(asked)
            standings = None if catalog.error else await asked.standings()
        except ChatError as error:
            catalog, standings = Catalog(error=error), None
        found = await run_in_threadpool(versions)
        return HTMLResponse(panels.adapters_page(catalog, found, standings))

    @router.get("/reports/{name}/{version}")
    def report(name: str, version: str, scheme: Literal["light", "dark"] | None = None) -> Response:
        path = report_path(volume, name, version) if volume else None
        if path is None:
            raise HTTPException(404, "There is no such report on the volume.")
        page = path.read_text("utf-8")
        if scheme is not None:
            # It follows the system's wish; within the page it has to follow the reader's choice.
            for wish in ("light", "dark"):
                applies = "all" if wish == scheme else "not all"
                page = page.replace(f"(prefers-color-scheme: {wish})", applies)
        return HTMLResponse(page, headers={"Content-Security-Policy": _REPORT_POLICY})

    return router


async def _measure(client: ChatClient, history: History) -> History | None:
    """The history with the newest sample; None where the server has no metrics."""
    now = time.monotonic()
    if now - history.newest > _SAMPLE_SECONDS:
        text = await client.metrics()
        if text is None:
            return None
        history.add(parse(text, now))
    return history
