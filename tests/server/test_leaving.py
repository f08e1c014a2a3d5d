"""A caller who leaves stops the computing within two steps: at the ASGI boundary, with the real engine.

(test_api.py leaves through real sockets.)
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from fastapi import FastAPI

from server.api.app import create_app
from server.api.service import Loaded, Service
from server.engine.engine import Engine
from server.engine.scheduler import Limits
from server.types import Catalogue
from tests.server.api_fakes import FakeCatalogue
from tests.server.fakes import ScriptedRunner

Send = Callable[[dict[str, Any]], Awaitable[None]]


@contextmanager
def serving(max_running: int = 4) -> Iterator[tuple[FastAPI, Engine, ScriptedRunner]]:
    """An endless answer, one token a step; prompts are computed eight tokens at a time."""
    runner = ScriptedRunner(
        says=lambda row, text, draw: 75, before_step=lambda _: time.sleep(0.005)
    )
    limits = Limits(
        max_running=max_running,
        max_step_tokens=8,
        prefill_tokens_beside_decoding=8,
        draft_tokens_per_step=0,
    )
    engine = Engine(runner, limits, max_context=256, max_waiting=8)
    engine.start()
    service = Service(max_choices=4, keepalive_seconds=15)
    service.set_loaded(Loaded(engine, cast(Catalogue, FakeCatalogue())))
    yield create_app(service), engine, runner
    engine.stop()


async def request(
    app: FastAPI, left: asyncio.Event, send: Send, path: str = "/v1/chat/completions", **fields: Any
) -> None:
    """One request over ASGI; the client goes away when `left` is set."""
    body = {"model": "base", "messages": [{"role": "user", "content": "x"}], **fields}
    if path.endswith("/completions") and "chat" not in path:
        body = {"model": "base", "prompt": "x", "max_tokens": 200, **fields}
    if path.endswith("/responses"):
        body = {"model": "base", "input": "x", **fields}
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
        "scheme": "http", "server": ("x", 1), "client": ("x", 1), "http_version": "1.1", "root_path": "",
        "asgi": {"version": "3.0"},
    }  # fmt: skip
    await app(scope, receive, send)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def leave_when(
    app: FastAPI,
    engine: Engine,
    runner: ScriptedRunner,
    condition: Callable[[], bool],
    **fields: Any,
) -> None:
    """Leaves when condition holds; asserts that the engine is done with it within two steps."""
    left = asyncio.Event()

    async def send(_: dict[str, Any]) -> None:
        pass

    task = asyncio.ensure_future(request(app, left, send, **fields))
    await until(condition)
    left.set()
    await asyncio.wait_for(task, 5)
    steps = len(runner.batches)
    await until(lambda: engine.stats.running + engine.stats.waiting == 0)
    assert len(runner.batches) - steps <= 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [True, False])
def test_leaving_while_tokens_are_drawn(path: str, stream: bool) -> None:
    with serving() as (app, engine, runner):
        condition = lambda: engine.stats.generation_tokens >= 3  # noqa: E731
        asyncio.run(leave_when(app, engine, runner, condition, path=path, stream=stream))
        assert engine.stats.generation_tokens < 50


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_while_the_prompt_is_computed(stream: bool) -> None:
    long = [{"role": "user", "content": "x" * 240}]
    with serving() as (app, engine, runner):
        condition = lambda: len(runner.batches) >= 3  # noqa: E731
        asyncio.run(leave_when(app, engine, runner, condition, messages=long, stream=stream))
        assert engine.stats.generation_tokens == 0


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_the_queue_leaves_the_running_answer_alone(stream: bool) -> None:
    with serving(max_running=1) as (app, engine, runner):

        async def both() -> None:
            first_left, second_left = asyncio.Event(), asyncio.Event()

            async def send(_: dict[str, Any]) -> None:
                pass

            first = asyncio.ensure_future(request(app, first_left, send, stream=True))
            await until(lambda: engine.stats.running == 1)
            second = asyncio.ensure_future(request(app, second_left, send, stream=stream))
            await until(lambda: engine.stats.waiting == 1)
            second_left.set()
            await asyncio.wait_for(second, 5)
            steps = len(runner.batches)
            await until(lambda: engine.stats.waiting == 0)
            assert len(runner.batches) - steps <= 2
            assert not first.done()
            first_left.set()
            await asyncio.wait_for(first, 5)
            await until(lambda: engine.stats.running == 0)

        asyncio.run(both())


def test_leaving_in_the_middle_of_a_slow_write() -> None:
    with serving() as (app, engine, runner):

        async def slow() -> None:
            left, stuck = asyncio.Event(), asyncio.Event()

            async def send(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.body":
                    stuck.set()
                    await asyncio.Event().wait()  # a full socket, for ever

            task = asyncio.ensure_future(request(app, left, send, stream=True))
            await stuck.wait()
            left.set()
            await asyncio.wait_for(task, 5)
            steps = len(runner.batches)
            await until(lambda: engine.stats.running == 0)
            assert len(runner.batches) - steps <= 2

        asyncio.run(slow())


@pytest.mark.parametrize("at", ["http.response.start", "http.response.body"])
def test_a_write_that_fails(at: str) -> None:
    """Some servers raise where the client is gone: also before the first byte."""
    with serving() as (app, engine, runner):

        async def broken() -> None:
            async def send(message: dict[str, Any]) -> None:
                if message["type"] == at:
                    raise OSError("gone")

            with pytest.raises(OSError, match="gone"):
                await asyncio.wait_for(request(app, asyncio.Event(), send, stream=True), 5)
            steps = len(runner.batches)
            await until(lambda: engine.stats.running + engine.stats.waiting == 0)
            assert len(runner.batches) - steps <= 2

        asyncio.run(broken())


def test_a_prompt_that_fails_leaves_nothing_waiting_for_the_others() -> None:
    with serving(max_running=1) as (app, engine, runner):

        def fail_once(_: object) -> None:
            if not runner.batches[1:]:
                raise RuntimeError("a broken step")
            time.sleep(0.005)

        runner.before_step = fail_once

        async def failing() -> None:
            statuses = []

            async def send(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            await request(app, asyncio.Event(), send, path="/v1/completions", prompt=["x", "y"])
            assert statuses == [500]
            await until(lambda: engine.stats.running + engine.stats.waiting == 0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(failing())
