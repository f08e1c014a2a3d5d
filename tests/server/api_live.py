"""The HTTP surface on a real socket, with the scripted engine of api_fakes behind it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import httpx
import openai

from server.api.app import create_app
from server.api.keys import Keyring, environment_keys
from server.api.observer import Reporter
from server.api.places import Places
from server.api.policy import Policy
from server.api.service import Loaded, Service
from server.engine.engine import Engine
from tests.server.api_fakes import LAST, FakeCatalogue, FakeEngine
from tests.server.live import serve

CHAT = "/v1/chat/completions"


@dataclass
class Running:
    http: httpx.Client
    engine: FakeEngine
    service: Service

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.http.base_url}/v1", api_key="x", max_retries=0)

    def chat(self, text: str = "hello", **fields: Any) -> httpx.Response:
        return self.http.post(CHAT, json=body(text, **fields))

    def stream(self, text: str = "hello", **fields: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed answer; checks the framing."""
        return chunks_of(self.chat(text, stream=True, **fields))

    def metric(self, name: str) -> float:
        """The value of a series of /metrics; 0 where there is none. The labels that all of vLLM's have are left out."""
        for line in plain_series(self.http.get("/metrics").text):
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        return 0.0


def plain_series(exposition: str) -> list[str]:
    """The lines of a scrape without `engine="0"` and `model_name="base"`."""
    plain = re.sub(r'(engine="0"|model_name="base"),?', "", exposition)
    return re.sub(r",}", "}", plain).replace("{}", "").splitlines()


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "base", "messages": [{"role": "user", "content": text}], **fields}


@contextmanager
def running(
    engine: FakeEngine | None = None,
    *,
    loaded: bool = True,
    template: str = LAST,
    keepalive_seconds: float = 15,
    api_keys: Sequence[str] = (),
    admin_key: str | None = None,
    max_answer_tokens: int | None = None,
    catalogue: FakeCatalogue | None = None,
    keeps_content: bool = False,
    reporters: Sequence[Reporter] = (),
    places: Places | None = None,
    **policy: Any,
) -> Iterator[Running]:
    """policy: fields of Policy."""
    engine = engine or FakeEngine()
    service = Service(
        max_choices=4, keepalive_seconds=keepalive_seconds, max_answer_tokens=max_answer_tokens,
        keeps_content=keeps_content,
    )  # fmt: skip
    if places is not None:
        service.metrics.add_connections(places)
    policy.setdefault("keyring", Keyring(environment_keys(api_keys, admin_key)))
    if loaded:
        service.set_loaded(
            Loaded(
                cast(Engine, engine),
                catalogue or FakeCatalogue(template=template),
                {"kernel": "fake"},
                sizes={"weight": 1000, "step": 900, "memory_limit": 2000},
            )
        )
    with (
        serve(
            create_app(service, Policy(**policy), reporters=reporters),
            Policy(**policy).stall_seconds,
            places,
        ) as url,
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        yield Running(http, engine, service)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
