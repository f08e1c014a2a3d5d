"""Each request leaves one line: what an operator asks about it, and nothing that its caller would mind."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from server.api.request_log import RequestLog
from server.log_format import JsonFormatter
from tests.server.api_fakes import FakeEngine
from tests.server.api_live import CHAT, Running, body, running, until

SECRET = "sk-super-secret-key-1"
PROMPT = "hunter2-is-my-password"


class Lines:
    """What the server logs, in JSON."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def requests(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in lines if line["logger"] == "lorachat.request"]

    def wait(self, number: int) -> list[dict[str, Any]]:
        until(lambda: len(self.requests) >= number)
        return self.requests


@contextmanager
def logging_server(
    engine: FakeEngine | None = None, *, with_content: bool = False, **options: Any
) -> Iterator[tuple[Running, Lines]]:
    lines = Lines()
    handler = logging.StreamHandler(lines.stream)
    handler.setFormatter(JsonFormatter())
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel("DEBUG")
    try:
        reporters = [RequestLog(with_content=with_content)]
        with running(engine, reporters=reporters, keeps_content=with_content, **options) as server:
            yield server, lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_leaves_one_line_with_all_that_is_known(stream: bool) -> None:
    with logging_server(FakeEngine(step_seconds=0.002, cached_tokens=2)) as (server, lines):
        headers = {"x-request-id": "mine-1", "user-agent": "test/1.0"}
        server.http.post(CHAT, json=body("hello", stream=stream), headers=headers).read()
        (line,) = lines.wait(1)
    expected = {
        "level": "info",
        "message": f"POST {CHAT} 200",
        "request_id": "mine-1",
        "user_agent": "test/1.0",
        "model": "base",
        "outcome": "finished",
        "status": 200,
        "stream": stream,
        "prompt_tokens": 5,
        "cached_tokens": 2,
        "completion_tokens": 6,
        "finish_reason": "stop",
    }
    assert {name: line[name] for name in expected} == expected
    assert line["response_id"].startswith("chatcmpl-")
    assert 0 <= line["queue_seconds"] <= line["first_token_seconds"] <= line["seconds"]


def test_several_prompts_of_one_request_are_one_line() -> None:
    with logging_server() as (server, lines):
        prompts = {"model": "base", "prompt": ["ab", "cde"], "max_tokens": 2}
        assert server.http.post("/v1/completions", json=prompts).status_code == 200
        (line,) = lines.wait(1)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (5, 4)
    assert line["finish_reason"] == "length,length"


def test_refused_requests_say_why_and_carry_no_tokens() -> None:
    with logging_server(FakeEngine(max_running=0)) as (server, lines):
        server.chat("x")
        server.chat("x", model="no-such")
        server.chat("x", temperature=9)
        server.http.get("/no/such/place")
        overloaded, absent, invalid, nowhere = lines.wait(4)
    assert (overloaded["outcome"], overloaded["status"]) == ("refused", 429)
    assert overloaded["error"] == "server_overloaded"
    assert (absent["error"], absent["model"]) == ("model_not_found", "no-such")
    assert (invalid["status"], invalid["error"]) == (400, "InvalidRequestError")
    assert nowhere["status"] == 404
    assert all("prompt_tokens" not in line for line in (overloaded, absent, invalid, nowhere))
    assert all(line["request_id"].startswith("req_") for line in (overloaded, absent, invalid))


def test_a_caller_who_leaves_is_told_apart() -> None:
    engine = FakeEngine(script=lambda *_: "x" * 200, step_seconds=0.02)
    with logging_server(engine) as (server, lines):
        with server.http.stream("POST", CHAT, json=body("x", stream=True)) as response:
            next(response.iter_lines())
        (line,) = lines.wait(1)
        assert line["outcome"] == "cancelled"
        assert server.metric('lorachat_requests_cancelled_total{phase="decode"}') == 1


def test_a_request_that_waits_and_goes_is_counted_as_waiting() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    with logging_server(engine) as (server, lines):
        left = threading.Event()

        def leave() -> None:
            with pytest.raises(Exception, match="timed out"):
                server.http.post(CHAT, json=body("x"), timeout=0.3)
            left.set()

        leave()
        assert left.is_set()
        (line,) = lines.wait(1)
        engine.gate.set()
        assert line["outcome"] == "cancelled"
        assert "queue_seconds" not in line
        assert server.metric('lorachat_requests_cancelled_total{phase="queue"}') == 1


def test_probes_are_no_noise() -> None:
    with logging_server() as (server, lines):
        for path in ("/health", "/ready", "/metrics", "/v1/models"):
            server.http.get(path)
        levels = {line["message"].split()[1]: line["level"] for line in lines.wait(4)}
    assert levels == {
        "/health": "debug",
        "/ready": "debug",
        "/metrics": "debug",
        "/v1/models": "info",
    }


def test_neither_keys_nor_texts_are_logged() -> None:
    with logging_server(api_keys=[SECRET]) as (server, lines):
        for headers in (
            {"authorization": f"Bearer {SECRET}"},
            {"x-api-key": SECRET},
            {"authorization": "Bearer wrong-" + SECRET},
            {"authorization": SECRET},
        ):
            server.http.post(CHAT, json=body(PROMPT), headers=headers)
            server.http.post(CHAT, json=body(PROMPT, temperature=9), headers=headers)
            server.http.post(CHAT, json=body("x", model=PROMPT * 9 + " "), headers=headers)
        lines.wait(12)
    assert SECRET not in lines.text
    assert PROMPT not in lines.text


def test_texts_are_logged_where_they_are_asked_for() -> None:
    with logging_server(with_content=True) as (server, lines):
        server.chat(PROMPT, n=2)
        (line,) = lines.wait(1)
    assert line["prompts"] == [PROMPT]
    assert line["answers"] == [PROMPT, PROMPT]


@pytest.mark.parametrize("field", ["model", "user-agent", "path"])
def test_callers_words_forge_no_line(field: str) -> None:
    forged = 'x"\n{"logger":"lorachat.request","message":"forged"}'
    with logging_server() as (server, lines):
        if field == "model":
            server.chat("x", model=forged)
        elif field == "path":
            server.http.get("/" + forged.replace("\n", "%0A"))
        else:
            raw = {"user-agent": forged.replace("\n", "\t").encode("latin-1")}
            server.http.post(CHAT, json=body("x"), headers=raw)  # type: ignore[arg-type]
        (line,) = lines.wait(1)
    assert not line["message"].startswith("forged")
    assert "user_agent" not in line or "forged" not in line["user_agent"]


def test_a_reporter_that_fails_harms_neither_the_answer_nor_the_others() -> None:
    def broken(_: object) -> None:
        raise RuntimeError("no")

    told: list[object] = []
    with running(reporters=[broken, told.append]) as server:
        assert server.chat("x").status_code == 200
        until(lambda: len(told) == 1)
