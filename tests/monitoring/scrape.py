"""One scrape of a server that has seen every kind of request: real HTTP, real engine, scripted weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

import httpx

from server.api.places import Places
from server.engine.engine import Engine
from server.engine.scheduler import Limits
from tests.server.api_fakes import FakeEngine, FakeModel
from tests.server.api_live import CHAT, body, running, until
from tests.server.fakes import ScriptedRunner

KEY = "sk-the-key"


@dataclass
class Adapter:
    key: str = "smalltalk@20261123-081642-3fa9c1"
    digest: str = "sha256:1"


def exposition() -> str:
    """After a finished, a repeated, a streamed, a cancelled and four refused requests, one of them on an adapter."""
    runner = ScriptedRunner(
        says=lambda row, text, draw: 75, before_step=lambda _: time.sleep(0.002)
    )
    limits = Limits(max_running=2, max_step_tokens=64, draft_tokens_per_step=8)
    engine = Engine(runner, limits, max_context=256, max_waiting=0)
    engine.start()
    headers = {"authorization": f"Bearer {KEY}"}
    with running(cast(FakeEngine, engine), api_keys=[KEY], places=Places(512)) as server:
        models = cast(Any, server.service.catalogue).models
        models["smalltalk"] = FakeModel(id=Adapter.key, adapter=cast(None, Adapter()))

        def chat(**fields: Any) -> httpx.Response:
            asked = {"max_tokens": 8, **fields}
            return server.http.post(CHAT, json=body("hello " * 8, **asked), headers=headers)

        assert chat().status_code == 200
        assert chat().status_code == 200
        assert chat(model="smalltalk", n=2).status_code == 200
        assert chat(stream=True).status_code == 200
        assert chat(model="absent").status_code == 404
        assert chat(temperature=9).status_code == 400
        assert chat(n=3).status_code == 429
        assert chat(no_such_field=1).status_code == 200
        assert server.http.get("/v1/models").status_code == 401
        endless = body("x", max_tokens=200, stream=True)
        with server.http.stream("POST", CHAT, json=endless, headers=headers) as response:
            next(response.iter_lines())
        until(lambda: engine.stats.running == 0)
        text = server.http.get("/metrics", headers=headers).text
    engine.stop()
    return text
