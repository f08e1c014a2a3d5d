"""The real engine breaks behind the real HTTP surface: everyone is told, /health turns red, keys share nothing."""

from __future__ import annotations

import concurrent.futures
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from server.api.app import create_app
from server.api.keys import Keyring, environment_keys
from server.api.policy import Policy
from server.api.service import Loaded, Service
from server.engine import engine as engine_module
from server.engine.engine import Engine
from server.engine.scheduler import Limits
from server.errors import StartupError
from server.loading import load
from server.settings import Settings
from server.step import Batch
from server.types import Catalogue
from tests.server.api_fakes import FakeCatalogue
from tests.server.api_live import CHAT, body, until
from tests.server.fakes import ScriptedRunner
from tests.server.live import serve


@contextmanager
def serving(
    before_step: Callable[[Batch], None] = lambda _: None, api_keys: tuple[str, ...] = ()
) -> Iterator[tuple[httpx.Client, Engine]]:
    runner = ScriptedRunner(says=lambda row, text, draw: 75, before_step=before_step)
    engine = Engine(
        runner, Limits(2, 64, 64, 0), max_context=256, max_waiting=30, max_waiting_tokens=10_000
    )
    engine.start()
    service = Service(max_choices=4, keepalive_seconds=15)
    service.set_loaded(Loaded(engine, cast(Catalogue, FakeCatalogue())))
    policy = Policy(Keyring(environment_keys(api_keys, None)), request_seconds=30)
    with serve(create_app(service, policy)) as url, httpx.Client(base_url=url, timeout=30) as http:
        yield http, engine
    engine.stop(1)


def ask(http: httpx.Client, count: int) -> list[httpx.Response]:
    """Streamed and whole in turn, all at once."""

    def one(number: int) -> httpx.Response:
        asked = body(f"question {number}", stream=number % 2 == 0, max_tokens=20)
        return http.post(CHAT, json=asked)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def error_of(response: httpx.Response) -> dict[str, Any] | None:
    """Before the first byte or after it."""
    if response.status_code != 200:
        return cast(dict[str, Any], response.json()["error"])
    if not response.headers["content-type"].startswith("text/event-stream"):
        return None
    events = [e.removeprefix("data: ") for e in response.text.split("\n\n") if e]
    assert events[-1] == "[DONE]"
    return cast("dict[str, Any] | None", json.loads(events[-2]).get("error"))


def test_a_step_that_raises_fails_its_own_requests_and_the_others_are_answered() -> None:
    calls: list[int] = []

    def fail_once(batch: Batch) -> None:
        calls.append(len(batch.rows))
        if len(calls) == 4:
            raise RuntimeError("cosmic ray")

    with serving(fail_once) as (http, engine):
        answers = ask(http, 10)
        errors = [error for error in map(error_of, answers) if error is not None]
        assert 1 <= len(errors) <= 2, "no more than run at once"
        assert {error["code"] for error in errors} == {"engine_error"}
        assert "cosmic" not in str(errors), "what went wrong inside is for the log"
        assert http.get("/health").status_code == 200
        assert error_of(ask(http, 1)[0]) is None
        assert (engine.stats.running, engine.stats.waiting, engine.stats.blocks_used) == (0, 0, 0)


def test_an_engine_that_cannot_go_on_turns_health_red_and_nobody_waits_for_ever() -> None:
    gate = threading.Event()

    def fail(_: Batch) -> None:
        gate.wait(20)
        raise RuntimeError("broken for good")

    with serving(fail) as (http, engine):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, http, 12)
            until(lambda: engine.stats.waiting + engine.stats.running == 12)
            assert http.get("/health").status_code == 200
            gate.set()
            codes = {(error_of(answer) or {}).get("code") for answer in asked.result(30)}
        assert codes <= {"engine_error", "engine_dead"}
        assert "engine_dead" in codes
        assert http.get("/health").status_code == 503
        assert http.get("/ready").json() == {"status": "failed"}
        refused = http.post(CHAT, json=body("x"))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_dead"


def test_a_step_that_never_ends_is_a_dead_engine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_STEP_SECONDS", 0.2)
    gate = threading.Event()
    with serving(lambda _: cast(None, gate.wait(20))) as (http, engine):
        headers = {"x-request-timeout": "0.5"}
        assert http.post(CHAT, json=body("x"), headers=headers).status_code == 504
        until(lambda: engine.failure is not None)
        assert http.get("/health").status_code == 503
        assert http.post(CHAT, json=body("x")).json()["error"]["code"] == "engine_dead"
        gate.set()


def test_keys_share_no_prefix_whatever_they_send() -> None:
    """By counting and not by the clock: what one key has computed is never found by another."""
    prompt = "the same long beginning of every conversation " * 2

    def cached(http: httpx.Client, key: str, **fields: Any) -> int:
        asked = body(prompt, max_tokens=2, **fields)
        answer = http.post(CHAT, json=asked, headers={"x-api-key": key}).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    with serving(api_keys=("first", "second")) as (http, _):
        assert cached(http, "first") == 0
        assert cached(http, "first") == len(prompt) - 1, "one's own is found"
        assert cached(http, "second") == 0
        assert cached(http, "second") == len(prompt) - 1
        # No salt names another key's part of the cache.
        for salt in ("first", "env-1", "env-1/", "/env-1", "env-2", ""):
            assert cached(http, "second", **({"cache_salt": salt} if salt else {})) in (
                (len(prompt) - 1,) if not salt else (0,)
            )
        assert cached(http, "second", cache_salt="env-1") == len(prompt) - 1


@pytest.mark.parametrize("given", [None, 0.000001])
def test_a_budget_too_small_to_start_is_a_sentence_that_says_how_much_it_takes(
    tiny_model: Path, given: float | None
) -> None:
    settings = Settings(model=str(tiny_model), kv_cache_gib=given, adapters=None)
    with pytest.raises(StartupError) as refusal:
        load(settings, 1, 100 * 2**20)
    words = "--kv-cache-gib 1e-06 holds" if given else "This process may use 0.10 GiB of memory"
    assert words in str(refusal.value)
    assert "Give it" in str(refusal.value)
