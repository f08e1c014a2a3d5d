"""One span per request for an answer, as an OpenTelemetry collector gets it: real OTLP over real HTTP."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.api.tracing import Tracing, otlp_exporter
from tests.conftest import ROOT
from tests.e2e.conftest import live_server
from tests.server.api_fakes import FakeEngine
from tests.server.api_live import CHAT, Running, body, running, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "hunter2-is-my-password"


class Collector:
    """What an OTLP/HTTP collector was sent."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.raw: list[bytes] = []
        self.spans: list[Any] = []
        self.resource: dict[str, Any] = {}

    def take(self, path: str, data: bytes) -> None:
        self.paths.append(path)
        self.raw.append(data)
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.resource = attributes(resource.resource)
            for scope in resource.scope_spans:
                self.spans += scope.spans


@contextmanager
def collecting() -> Iterator[tuple[str, Collector]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            assert self.headers["content-type"] == "application/x-protobuf"
            collector.take(self.path, data)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", collector
    http.shutdown()


def attributes(holder: Any) -> dict[str, Any]:
    found = {}
    for item in holder.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        found[item.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


@contextmanager
def traced(
    engine: FakeEngine | None = None, *, with_content: bool = False, number: int = 1, **options: Any
) -> Iterator[tuple[Running, Collector]]:
    """On the way out all spans have been sent; `number` requests are waited for."""
    told: list[object] = []
    with collecting() as (url, collector):
        tracing = Tracing(otlp_exporter(url), with_content=with_content)
        options |= {"reporters": [tracing, told.append], "keeps_content": with_content}
        with running(engine, **options) as server:
            yield server, collector
            until(lambda: len(told) >= number)
        tracing.close()


def test_an_answer_is_one_span_in_the_words_of_the_conventions() -> None:
    with traced(FakeEngine(step_seconds=0.002, cached_tokens=2)) as (server, collector):
        headers = {"user-agent": "test/1.0", "x-request-id": "mine-1"}
        asked = body(PROMPT, stream=True, temperature=0.5, top_p=0.9, max_tokens=5, n=2)
        server.http.post(CHAT, json=asked, headers=headers).read()
    (span,) = collector.spans
    assert collector.paths == ["/v1/traces"]
    assert collector.resource["service.name"] == "lorachat"
    assert span.name == "chat base"
    assert span.kind == 2  # server
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 30e9
    found = attributes(span)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lorachat",
        "gen_ai.request.model": "base",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.model": "base",
        "gen_ai.response.finish_reasons": ["length", "length"],
        "gen_ai.usage.input_tokens": len(PROMPT),
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "user_agent.original": "test/1.0",
        "lorachat.request_id": "mine-1",
        "lorachat.outcome": "finished",
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["gen_ai.response.id"].startswith("chatcmpl-")
    assert 0 < found["gen_ai.response.time_to_first_chunk"] < 30
    assert "error.type" not in found


def test_the_callers_trace_goes_on() -> None:
    with traced(number=2) as (server, collector):
        given = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
        server.http.post(CHAT, json=body("x"), headers=given)
        server.http.post(CHAT, json=body("x"), headers={"traceparent": "00-nonsense\x7f-01"})
    first, other = collector.spans
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert first.trace_state == "vendor=1"
    assert other.trace_id.hex() != TRACE
    assert other.parent_span_id == b""


def test_a_caller_who_did_not_sample_is_not_traced() -> None:
    with traced() as (server, collector):
        server.http.post(CHAT, json=body("x"), headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert collector.spans == []


def test_no_text_and_no_key_is_in_a_trace_unless_texts_are_asked_for() -> None:
    key = "sk-super-secret"
    with traced(api_keys=[key], number=2) as (server, collector):
        asked = body(PROMPT, stop=["STOP-WORD"])
        server.http.post(CHAT, json=asked, headers={"authorization": f"Bearer {key}"})
        server.http.post(CHAT, json=asked, headers={"authorization": f"Bearer not-{key}"})
    assert len(collector.spans) == 1  # without a valid key there is none
    data = b"".join(collector.raw)
    for secret in (PROMPT, key, "STOP-WORD"):
        assert secret.encode() not in data

    with traced(with_content=True) as (server, collector):
        server.http.post(CHAT, json=asked)
    found = attributes(collector.spans[0])
    part = {"type": "text", "content": PROMPT}
    assert json.loads(found["gen_ai.input.messages"]) == [{"role": "user", "parts": [part]}]
    assert json.loads(found["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [part], "finish_reason": "stop"}
    ]
    assert found["gen_ai.request.stop_sequences"] == ["STOP-WORD"]


def test_what_goes_wrong_is_named() -> None:
    with traced(FakeEngine(fail_after=1), number=3) as (server, collector):
        server.chat("abc")
        server.chat("abc", model="absent")
        server.http.post("/v1/completions", json={"model": "base", "prompt": "x", "n": 99})
    failed, absent, invalid = collector.spans
    assert attributes(failed)["error.type"] == "engine_error"
    assert failed.status.code == 2  # error
    assert (absent.name, attributes(absent)["error.type"]) == ("chat absent", "model_not_found")
    assert absent.status.code == 0  # the caller's fault is none of ours
    assert invalid.name == "text_completion base"
    assert attributes(invalid)["http.response.status_code"] == 400


def test_routes_that_give_no_answers_are_not_traced() -> None:
    with traced(number=3) as (server, collector):
        for path in ("/health", "/metrics", "/v1/models"):
            server.http.get(path)
    assert collector.spans == []


def test_a_collector_that_is_away_costs_no_answer() -> None:
    tracing = Tracing(otlp_exporter("http://127.0.0.1:9"))
    with running(reporters=[tracing]) as server:
        assert server.chat("x").status_code == 200


def test_the_program_sends_traces_and_is_done_when_it_ends(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    with collecting() as (url, collector):
        monkeypatch.setenv("OTEL_SERVICE_NAME", "by-variable")
        log = tmp_path / "server.log"
        flags = ("--otel-endpoint", url, "--log-format", "json")
        with live_server(tiny_model, tmp_path / "none", log, *flags) as server:
            asked = body("hello", max_tokens=4)
            assert httpx.post(f"{server.url}{CHAT}", json=asked, timeout=60).status_code == 200
            os.kill(server.pid, signal.SIGTERM)
    (span,) = collector.spans
    assert span.name == "chat base"
    assert collector.resource["service.name"] == "by-variable"
    lines = [json.loads(line) for line in log.read_text().splitlines()]  # uvicorn's too
    assert {line["logger"] for line in lines} >= {"lorachat", "lorachat.request", "uvicorn.error"}


@pytest.mark.parametrize("by_variable", [False, True])
def test_without_the_packages_it_says_what_to_install(by_variable: bool) -> None:
    code = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk.resources'] = None\n"
        "from server.errors import StartupError\n"
        "from server.reporters import tracing_of\n"
        "from server.settings import Settings\n"
        "try: print(tracing_of(Settings(model='m', otel_endpoint=None if sys.argv[1:] else 'http://x')))\n"
        "except StartupError as error: sys.exit(str(error))"
    )
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"} if by_variable else {}
    done = subprocess.run(
        [sys.executable, "-c", code, *(["x"] if by_variable else [])],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **variables},
    )  # fmt: skip
    # A variable may be meant for every program of a cluster; the flag is meant for this one.
    assert done.returncode == (0 if by_variable else 1), done.stderr
    assert "requirements/otel.txt" in done.stderr
    assert "Traceback" not in done.stderr
