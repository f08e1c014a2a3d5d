"""The OpenAPI document, the page made from it and docs/api.md say what the code does."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.api.docs_page import kind
from server.api.schemas import chat, completions, responses
from server.api.schemas.examples import EXAMPLES
from tests.conftest import ROOT
from tests.server.api_fakes import FakeEngine
from tests.server.api_live import Running, running

GUIDE = (ROOT / "docs" / "api.md").read_text("utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeEngine(script=lambda *_: "")) as server:
        yield server


@pytest.fixture(scope="module")
def document(server: Running) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get("/openapi.json").json()
    return found


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    references = set(re.findall(r"'\$ref': '([^']+)'", str(document)))
    assert references
    for reference in references:
        assert reference.removeprefix("#/components/schemas/") in schemas
    assert "HTTPValidationError" not in schemas, "this server never answers 422"


def test_every_example_is_answered(server: Running, document: dict[str, Any]) -> None:
    sent = 0
    for path, operations in document["paths"].items():
        for operation in operations.values():
            media = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for example in media.get("examples", {}).values():
                response = server.http.post(path, json=example["value"])
                assert response.status_code == 200, (path, response.text)
                sent += 1
    assert sent == sum(map(len, EXAMPLES.values()))


def test_the_page_shows_every_route_and_loads_nothing(
    server: Running, document: dict[str, Any]
) -> None:
    page = server.http.get("/docs").text
    for path in document["paths"]:
        assert path in page
    assert "<script" not in page
    assert "<link" not in page
    assert not re.findall(r"(?:src|href)=['\"]?https?:", page)
    assert kind({"type": "number", "minimum": 0, "maximum": 2}) == "number from 0 to 2"
    assert kind({"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}]}) == (
        "string at most 9 characters"
    )


@pytest.mark.parametrize(
    "model", [chat.ChatRequest, completions.CompletionRequest, responses.ResponseRequest]
)
def test_the_guide_has_every_field(model: Any) -> None:
    for name in model.model_fields:
        assert f"`{name}`" in GUIDE or f"`{name}." in GUIDE, name


def test_the_guide_names_what_is_refused() -> None:
    for table in (chat.NOT_HONOURED, completions.NOT_HONOURED, responses.NOT_HONOURED):
        for name in table:
            assert f"`{name}`" in GUIDE, name


def test_the_guide_has_every_metric(server: Running) -> None:
    text = server.http.get("/metrics").text
    for name in re.findall(r"^# TYPE ((?:vllm|lorachat)\S+)", text, re.MULTILINE):
        base = re.sub(r"_(total|created|info)$", "", name)
        assert base in GUIDE or "lorachat_kv_blocks" in base, name


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_memory_and_start_of_the_process_are_told(server: Running) -> None:
    """The client's status page shows the memory."""
    assert server.metric("process_resident_memory_bytes") > 1e6
    assert 0 <= time.time() - server.metric("process_start_time_seconds") < 86400


def test_the_guides_bounds_are_the_schemas(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| ([^|]*) \|", GUIDE, re.MULTILINE))
    for name, row in (("temperature", "0 … 2"), ("min_p", "0 … 1"), ("top_p", "over 0 … 1"),
                      ("repetition_penalty", "over 0 … 10")):  # fmt: skip
        (bounded, _) = fields[name]["anyOf"]
        low = bounded.get("minimum", bounded.get("exclusiveMinimum"))
        over = "over " if "exclusiveMinimum" in bounded else ""
        assert row == f"{over}{low:g} … {bounded['maximum']:g}"
        assert rows[name].startswith(row), name


def test_what_load_tools_and_evaluations_send_is_understood(server: Running) -> None:
    """guidellm, `vllm bench serve`, aiperf, lm-eval: their bodies, field for field."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "u"}]
    usage = {"include_usage": True, "continuous_usage_stats": True}
    guidellm = {"messages": parts, "stream_options": usage, "stop": None, "ignore_eos": True,
                "max_completion_tokens": 3}  # fmt: skip
    chunks = server.stream("", **guidellm)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    lm_eval = {"temperature": 0, "max_tokens": 4, "stop": ["\n\n"], "seed": 1234}
    assert server.chat("hi", **lm_eval).status_code == 200
    aiperf = {"messages": parts, "max_completion_tokens": 4, "min_tokens": 4}
    assert server.chat("", **aiperf).json()["object"] == "chat.completion"
